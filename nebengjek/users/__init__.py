"""Who a person is, and the phone in his hand: login, drivers, beacon, finder, WebSocket."""
