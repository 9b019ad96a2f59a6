// Operators of a captured stream, and where they draw random numbers from.
#pragma once
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <functional>

#include "../stub/graph.h"

namespace simnpu {

// Seed and offset of random numbers. While a stream is captured, a graph will find others in the same tensors.
struct Seed {
  at::Tensor seed, offset;
  uint64_t intragraph;
};

using Redispatch = std::function<void(const c10::OperatorHandle&, torch::jit::Stack*)>;

// The graph that the current stream is captured for, or nullptr.
Graph* current_graph();

// Before an operator runs: what it overwrites is put back when the capture ends.
void keep_written(Graph* graph, const c10::FunctionSchema& schema, const std::vector<c10::IValue>& arguments);

// After it has run, with its results at the end of the stack.
void record(Graph* graph, const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments,
            const torch::jit::Stack& stack, Redispatch redispatch);

// The bytes of a result that a CPU kernel made, into the tensor that stands for it.
void put(const at::Tensor& value, const at::Tensor& target);

// Moves a card's generator on.
Seed draw(at::Generator generator, uint64_t step);
at::Generator cpu_generator(const Seed& seed);

}  // namespace simnpu
