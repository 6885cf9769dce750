"""Every figure of the README has its script here, against its peer, measured in one run."""
