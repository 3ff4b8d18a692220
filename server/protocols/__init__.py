"""The gRPC services. They only convert and call."""
