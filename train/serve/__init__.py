"""A policy behind a websocket, for clients that speak openpi's protocol."""
