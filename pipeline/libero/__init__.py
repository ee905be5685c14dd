"""The LIBERO simulator as a policy and a collector of demonstrations meet it."""
