// What a graph keeps of the operators that were launched while a stream was captured, and how it runs them again.
//
// As on the device a graph knows addresses only: its tensors keep no memory alive.
#include "graph.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/CPUAllocator.h>

#include <cstring>
#include <mutex>
#include <unordered_set>
#include <utility>

#include "fallback.h"
#include "torch_npu/csrc/aten/NPUGeneratorImpl.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"

extern "C" int fault_set_text(const char* text, int code, const char* call);

namespace simnpu {
namespace {

using c10::IValue;
constexpr auto NPU = c10::DeviceType::PrivateUse1;
constexpr int EXECUTION_FAILED = 507018;

// A CPU tensor over the memory of a tensor, which may be gone when it is used.
at::Tensor borrowed(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.device().is_privateuseone()) return tensor;
  const auto& storage = tensor.storage();
  return cpu_like(tensor, c10::Storage(c10::make_intrusive<c10::StorageImpl>(
                              c10::StorageImpl::use_byte_size_t(), storage.nbytes(),
                              at::DataPtr(storage.mutable_data(), c10::Device(c10::kCPU)), c10::GetCPUAllocator(),
                              /*resizable=*/false)));
}

IValue borrowed(const IValue& value) {
  if (value.isTensor()) return borrowed(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorList()) list.push_back(borrowed(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList()) {
      list.push_back(tensor ? std::optional<at::Tensor>(borrowed(*tensor)) : std::nullopt);
    }
    return list;
  }
  if (value.isDevice() && value.toDevice().is_privateuseone()) return c10::Device(c10::kCPU);
  return value;
}

void collect(const IValue& value, std::vector<at::Tensor>& tensors) {
  if (value.isTensor()) {
    tensors.push_back(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorList()) tensors.push_back(tensor);
  }
}

struct Recorded {
  c10::OperatorHandle op;
  std::vector<IValue> arguments;
  std::vector<at::Tensor> results;
  Redispatch redispatch;

  void run() const {
    torch::jit::Stack stack = arguments;
    redispatch(op, &stack);
    std::vector<at::Tensor> found;
    for (const auto& value : stack) collect(value, found);
    for (size_t i = 0; i < found.size() && i < results.size(); i++) put(found[i], results[i]);
  }
};

int operate(void* data, Action action) {
  const auto* recorded = static_cast<Recorded*>(data);
  if (action == DROP) {
    delete recorded;
    return 0;
  }
  try {
    recorded->run();
  } catch (const std::exception& error) {
    return fault_set_text(error.what(), EXECUTION_FAILED, recorded->op.schema().name().c_str());
  }
  return 0;
}

std::mutex guard;
std::vector<int64_t> dropped;

// Python keeps what it must run again under a number.
int call_python(void* data, Action action) {
  const auto number = reinterpret_cast<int64_t>(data);
  if (action == DROP) {
    std::lock_guard<std::mutex> lock(guard);
    dropped.push_back(number);
    return 0;
  }
  try {
    torch::jit::Stack stack{number};
    c10::Dispatcher::singleton().findSchemaOrThrow("simnpu::run_recorded", "").callBoxed(&stack);
  } catch (const std::exception& error) {
    return fault_set_text(error.what(), EXECUTION_FAILED, "aclmdlRIExecuteAsync");
  }
  return 0;
}

}  // namespace

void put(const at::Tensor& value, const at::Tensor& target) {
  if (!value.defined() || !value.numel() || value.const_data_ptr() == target.const_data_ptr()) return;
  const auto offset = value.storage_offset() * value.itemsize();
  const auto bytes = std::min(target.storage().nbytes(), value.storage().nbytes() - offset);
  std::memcpy(target.mutable_data_ptr(), value.const_data_ptr(), bytes);
}

Graph* current_graph() {
  const auto device = c10::impl::getDeviceGuardImpl(NPU)->getDevice();
  return device.index() < 0 ? nullptr : graph_of(c10_npu::getCurrentNPUStream(device.index()).stream());
}

void keep(Graph* graph, const at::Tensor& tensor) {
  if (tensor.defined() && tensor.device().is_privateuseone()) {
    graph_keep(graph, tensor.storage().mutable_data(), tensor.storage().nbytes());
  }
}

void keep_written(Graph* graph, const c10::FunctionSchema& schema, const std::vector<IValue>& arguments) {
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias == nullptr || !alias->isWrite()) continue;
    std::vector<at::Tensor> tensors;
    collect(arguments[i], tensors);
    for (const auto& tensor : tensors) keep(graph, tensor);
  }
}

void record(Graph* graph, const c10::OperatorHandle& op, const std::vector<IValue>& arguments,
            const torch::jit::Stack& stack, Redispatch redispatch) {
  auto* recorded = new Recorded{op, {}, {}, std::move(redispatch)};
  for (const auto& value : arguments) recorded->arguments.push_back(borrowed(value));
  for (size_t i = stack.size() - op.schema().returns().size(); i < stack.size(); i++) {
    collect(borrowed(stack[i]), recorded->results);
  }
  graph_add(graph, operate, recorded, op.schema().name().c_str());
}

Seed draw(at::Generator generator, uint64_t step) {
  std::lock_guard<std::mutex> lock(generator.mutex());
  const auto state = static_cast<at_npu::NPUGeneratorImpl*>(generator.unsafeGetGeneratorImpl())->philox_npu_state(step);
  if (state.captured_) return {*state.seed_.ptr, *state.offset_.ptr, state.offset_intragraph_};
  const auto value = [](uint64_t number) { return at::scalar_tensor(static_cast<int64_t>(number), at::kLong); };
  return {value(state.seed_.val), value(state.offset_.val), 0};
}

at::Generator cpu_generator(const Seed& seed) {
  const auto value = [](const at::Tensor& tensor) {
    return static_cast<uint64_t>(*static_cast<const int64_t*>(tensor.const_data_ptr()));
  };
  return at::detail::createCPUGenerator(value(seed.seed) + (value(seed.offset) + seed.intragraph) * 0x9E3779B97F4A7C15ull);
}

TORCH_LIBRARY_FRAGMENT(simnpu, m) {
  m.def("run_recorded(int number) -> ()");
  m.def("record(int number, str name) -> int[]", [](int64_t number, const std::string& name) {
    static std::unordered_set<std::string> names;  // a graph wants names that stay
    graph_add(current_graph(), call_python, reinterpret_cast<void*>(number), names.insert(name).first->c_str());
    std::lock_guard<std::mutex> lock(guard);
    return std::exchange(dropped, {});
  });
  m.def("is_recording() -> bool", [] { return current_graph() != nullptr; });
  m.def("keep(Tensor tensor) -> ()");
  m.def("borrowed(Tensor tensor) -> Tensor");
  m.def("draw(Device device, int step) -> (Tensor, Tensor, int)", [](c10::Device device, int64_t step) {
    const auto seed = draw(at::globalContext().getAcceleratorHooksInterface(NPU).getDefaultGenerator(device.index()), step);
    return std::make_tuple(borrowed(seed.seed), borrowed(seed.offset), static_cast<int64_t>(seed.intragraph));
  });
}

TORCH_LIBRARY_IMPL(simnpu, CompositeImplicitAutograd, m) {
  m.impl("keep", [](const at::Tensor& tensor) { keep(current_graph(), tensor); });
  m.impl("borrowed", [](const at::Tensor& tensor) { return borrowed(tensor); });
}

}  // namespace simnpu
