"""The processes of a run on several hosts: each ends if another one has died."""
