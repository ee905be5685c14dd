"""Writing LeRobot 3.0 datasets with pyarrow and PyAV."""
