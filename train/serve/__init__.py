"""Serves a policy over a websocket, for clients with openpi's protocol."""
