"""The settings file's assets: edited by command, and looked up at the provider."""
