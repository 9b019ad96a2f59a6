/* Operators that torch_npu asks for by name to tell what CANN can do. None is called: the kernels are in Python. */
int aclnnSilentCheckGetWorkspaceSize(void) { return -1; }
int aclnnSilentCheck(void) { return -1; }
