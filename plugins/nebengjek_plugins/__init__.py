"""Modules that the application can live without; nothing in nebengjek imports this package."""
