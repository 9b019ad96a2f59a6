// Runs operators of npu tensors with the kernels of the CPU, over the same bytes.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <string>

namespace simnpu {

// The tail that torch_npu puts on its messages.
std::string error_tail(int device, const char* code);

// A CPU tensor like a tensor, over this storage.
at::Tensor cpu_like(const at::Tensor& tensor, c10::Storage storage);

// A CPU tensor over the memory of an npu tensor, in which all work that was queued before is done.
at::Tensor cpu_alias(const at::Tensor& tensor);

// A boxed kernel for every operator that has a CPU kernel.
void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack);

// Counters of operators and copies; see simnpu/trace.py.
void count(const std::string& what, int64_t by = 1);
c10::Dict<std::string, int64_t> counters();

// Makes every aten operator of torch_npu run on the CPU; returns how many.
int64_t install();

}  // namespace simnpu
