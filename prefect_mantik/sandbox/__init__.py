"""The sandbox: a platform, a tracking server and three sites on loopback, with no account anywhere."""
