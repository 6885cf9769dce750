"""Where everybody is, and how far a ride has come."""
