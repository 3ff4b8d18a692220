"""Who may call, how much of the server one caller can take, and what travels encrypted. docs/security.md says why."""
