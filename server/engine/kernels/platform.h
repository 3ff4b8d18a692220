/* The kernels are for x86-64 on Linux; elsewhere the library is compiled without operators. */

#pragma once

#if defined(__x86_64__) && defined(__linux__)
#define HEED_X86
#endif
