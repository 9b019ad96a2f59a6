"""A simulated Ascend NPU: the unchanged torch-npu wheel on a stub of CANN. For tests; see README.md beside setup.py."""
