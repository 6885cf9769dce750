"""Profiles: what follows from an account: the profile, pictures, the operators' search, who signed up when."""

from nebengjek_plugins.profiles.module import profiles

__all__ = ["profiles"]
