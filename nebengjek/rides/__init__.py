"""Rides: from the accepted match over pick-up, ledger and fare to the payment."""
