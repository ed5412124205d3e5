"""Where the data comes from: the protocol of a provider, `polygon`, and a deadline for HTTP."""
