"""Demonstrations in HDF5: LIBERO's, robomimic's, and files of one episode."""
