// One call: npu arguments become CPU tensors over the same bytes, the CPU kernel runs, results are mapped back.
//
// Every npu storage gets exactly one CPU storage per call, so that arguments that alias keep doing so; in-place
// operators, out= variants, views and foreach lists then need no code of their own.
#include "fallback.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <unistd.h>

#include <cstring>
#include <ctime>
#include <typeinfo>
#include <unordered_set>
#include "graph.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"

namespace simnpu {
namespace {

using c10::Device;
using c10::IValue;
constexpr auto NPU = c10::DeviceType::PrivateUse1;

c10::Storage alias_storage(const c10::Storage& storage) {
  // The CPU storage keeps the npu storage alive; its own deleter frees nothing else.
  using Keeper = c10::intrusive_ptr<c10::StorageImpl>;
  auto* keeper = new Keeper(Keeper::reclaim_copy(storage.unsafeGetStorageImpl()));
  at::DataPtr data(storage.mutable_data(), keeper, [](void* it) { delete static_cast<Keeper*>(it); }, Device(c10::kCPU));
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetCPUAllocator(), true));
}

Device current_device() { return c10::impl::getDeviceGuardImpl(NPU)->getDevice(); }

// Operators that take CPU tensors beside npu tensors on the real device too.
bool may_mix_devices(const std::string& name) {
  static const std::unordered_set<std::string> names{
      "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize", "aten::index", "aten::index_put",
      "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index", "aten::_unsafe_index_put"};
  return names.count(name) > 0;
}

// Operators whose result the host must wait for: a value, or a shape that depends on values.
bool reads_back(const std::string& name) {
  static const std::unordered_set<std::string> names{
      "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
      "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::nonzero_static"};
  return names.count(name) > 0;
}

// torch_npu's fused optimizers launch one kernel for each parameter.
int64_t launches(const std::string& name, const IValue& first) {
  return name.rfind("aten::_fused_ad", 0) == 0 && first.isTensorList() ? first.toTensorList().size() : 1;
}

// torch_npu runs some work (collectives) in a queue of its own thread; what it wrote must be there before we read it.
void finish_queued_work(Device device) {
  if (device.index() >= 0) c10_npu::getCurrentNPUStream(device.index()).stream();
}

void wait_for(Device device) { c10_npu::getCurrentNPUStream(device.index()).synchronize(); }

// The arguments of one call on both sides.
class Call {
 public:
  explicit Call(std::string name) : name_(std::move(name)), copies_(name_ == "aten::copy_") {}

  at::Tensor to_cpu(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!tensor.device().is_privateuseone()) {
      if (tensor.dim() > 0 && tensor.is_cpu()) cpu_seen_ = true;
      pairs_.push_back({tensor, tensor});
      return tensor;
    }
    npu_seen_ = true;
    if (target_.index() < 0) target_ = tensor.device();
    TORCH_CHECK(copies_ || target_ == tensor.device(),
                "Expected all tensors to be on the same device, but found at least two devices, ", target_, " and ",
                tensor.device(), "!", error_tail(target_.index(), "ERR01002 OPS invalid type"));
    for (auto& pair : pairs_) {
      if (pair.npu.is_same(tensor)) return pair.cpu;
    }
    auto result = cpu_like(tensor, cpu_storage(tensor));
    pairs_.push_back({tensor, result});
    return result;
  }

  Device to_cpu(Device device) {
    if (!device.is_privateuseone()) return device;
    if (target_.index() < 0) target_ = device.has_index() ? device : current_device();
    return Device(c10::kCPU);
  }

  Device target() {
    if (target_.index() < 0) target_ = current_device();
    return target_;
  }

  void refuse_mixed_devices() const {
    TORCH_CHECK(!npu_seen_ || !cpu_seen_ || may_mix_devices(name_),
                "Expected all tensors to be on the same device. Expected NPU tensor, please check whether the input "
                "tensor device is correct.",
                error_tail(target_.index(), "ERR01002 OPS invalid type"), " (", name_, ")");
  }

  // Kernels may have resized or re-strided their arguments: out= variants, resize_, squeeze_.
  void write_back_shapes() {
    for (auto& [npu, cpu] : pairs_) {
      if (cpu.is_same(npu) || (cpu.sizes() == npu.sizes() && cpu.strides() == npu.strides())) continue;
      if (cpu.const_data_ptr() != npu.const_data_ptr()) {
        npu.resize_(cpu.sizes());
        std::memcpy(npu.mutable_data_ptr(), cpu.const_data_ptr(), cpu.storage().nbytes());
      }
      npu.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
    }
  }

  at::Tensor to_npu(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cpu()) return tensor;
    if (tensor.is_sparse()) {
      return at::_sparse_coo_tensor_unsafe(to_npu(tensor._indices()), to_npu(tensor._values()), tensor.sizes(),
                                           tensor.options().device(target()), tensor.is_coalesced());
    }
    if (!tensor.has_storage()) return tensor;
    for (auto& pair : pairs_) {
      if (pair.cpu.is_same(tensor)) return pair.npu;
    }
    for (auto& [npu, storage] : storages_) {
      // torch_npu's tensors carry their own storage class, so its own kernel makes the view
      if (storage.unsafeGetStorageImpl() == tensor.storage().unsafeGetStorageImpl()) {
        return npu.as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
      }
    }
    auto result = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(target()));
    put(tensor, result);
    return result;
  }

  // Counts a copy by its direction; between host and card the host waits, unless asked not to, as torch_npu does.
  void count_copy(bool non_blocking) {
    if (pairs_.size() < 2) return;
    const bool to = pairs_[0].npu.device().is_privateuseone(), from = pairs_[1].npu.device().is_privateuseone();
    count(to ? (from ? "copy:d2d" : "copy:h2d") : "copy:d2h");
    if (to != from && !non_blocking) wait_for(target_);
  }

 private:
  struct Pair {
    at::Tensor npu, cpu;
  };

  c10::Storage cpu_storage(const at::Tensor& tensor) {
    for (auto& [npu, storage] : storages_) {
      if (npu.storage().unsafeGetStorageImpl() == tensor.storage().unsafeGetStorageImpl()) return storage;
    }
    storages_.emplace_back(tensor, alias_storage(tensor.storage()));
    return storages_.back().second;
  }

  std::string name_;
  bool copies_;
  bool cpu_seen_ = false, npu_seen_ = false;
  Device target_{NPU, -1};
  c10::SmallVector<Pair, 8> pairs_;
  c10::SmallVector<std::pair<at::Tensor, c10::Storage>, 8> storages_;
};

// The generator that was given, or the card's own.
at::Generator npu_generator(const std::optional<at::Generator>& given, Device device) {
  TORCH_CHECK(!given || given->device().is_privateuseone(), "Expected a '", device,
              "' generator device but found '", given->device(), "'");
  return given ? *given : at::globalContext().getAcceleratorHooksInterface(NPU).getDefaultGenerator(device.index());
}

template <class Element, class Map>
c10::List<Element> mapped(const c10::List<Element>& list, const Map& map) {
  c10::List<Element> result;
  result.reserve(list.size());
  for (const Element& item : list) result.push_back(map(item));
  return result;
}

void arguments_to_cpu(Call& call, IValue& value) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) value = call.to_cpu(value.toTensor());
  } else if (value.isTensorList()) {
    value = mapped(value.toTensorList(), [&](const at::Tensor& tensor) { return call.to_cpu(tensor); });
  } else if (value.isOptionalTensorList()) {
    value = mapped(value.toOptionalTensorList(), [&](const std::optional<at::Tensor>& tensor) {
      return tensor ? std::optional<at::Tensor>(call.to_cpu(*tensor)) : std::nullopt;
    });
  } else if (value.isDevice()) {
    value = call.to_cpu(value.toDevice());
  }
}

// Operators without a slot for a generator (dropout) draw from the CPU's default one, which is lent our state.
void redispatch_with_default_generator(const c10::OperatorHandle& op, torch::jit::Stack* stack, const Seed& seed) {
  auto generator = at::detail::getDefaultCPUGenerator();
  auto saved = generator.get_state();
  generator.set_state(cpu_generator(seed).get_state());
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  generator.set_state(saved);
}

// How an operator runs on CPU tensors, where it takes a generator and what that begins with.
struct Run {
  Device device;
  std::optional<size_t> generator_slot;
  std::optional<Seed> seed;

  void operator()(const c10::OperatorHandle& op, torch::jit::Stack* stack) const {
    // Refusals of arguments carry torch_npu's tail; errors of another class (IndexError ...) do not.
    try {
      if (seed && !generator_slot) return redispatch_with_default_generator(op, stack, *seed);
      const auto base = stack->size() - op.schema().arguments().size();
      if (generator_slot) (*stack)[base + *generator_slot] = cpu_generator(*seed);
      op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
    } catch (const c10::Error& error) {
      if (typeid(error) != typeid(c10::Error)) throw;
      TORCH_CHECK(false, error.msg(), error_tail(device.index(), "ERR01001 OPS invalid parameter"));
    }
  }
};

}  // namespace

std::string error_tail(int device, const char* code) {
  char when[32];
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  std::strftime(when, sizeof when, "%Y-%m-%d-%H:%M:%S", localtime_r(&now, &parts));
  const char* rank = std::getenv("RANK");
  return c10::str("\n[ERROR] ", when, " (PID:", getpid(), ", Device:", device, ", RankID:", rank ? rank : "-1", ") ", code);
}

at::Tensor cpu_like(const at::Tensor& tensor, c10::Storage storage) {
  auto result = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  if (tensor.is_conj()) impl->_set_conj(true);
  if (tensor.is_neg()) impl->_set_neg(true);
  return result;
}

at::Tensor cpu_alias(const at::Tensor& tensor) {
  finish_queued_work(tensor.device());
  return cpu_like(tensor, alias_storage(tensor.storage()));
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& arguments = schema.arguments();
  const size_t base = stack->size() - arguments.size();
  Call call(schema.name());
  count(schema.name(), launches(schema.name(), (*stack)[base]));
  auto* graph = current_graph();  // waits for what is queued
  std::vector<IValue> given;
  if (graph) given.assign(stack->begin() + base, stack->end());
  std::optional<size_t> generator_slot;
  std::optional<at::Generator> generator;
  bool non_blocking = false;
  for (size_t i = 0; i < arguments.size(); i++) {
    IValue& value = (*stack)[base + i];
    if (value.isGenerator()) generator = value.toGenerator();
    if (arguments[i].name() == "generator") generator_slot = i;
    if (arguments[i].name() == "non_blocking") non_blocking = value.isBool() && value.toBool();
    arguments_to_cpu(call, value);
  }
  call.refuse_mixed_devices();
  const Device target = call.target();
  if (schema.name() == "aten::copy_") call.count_copy(non_blocking);
  if (reads_back(schema.name())) {
    count("copy:d2h");
    wait_for(target);
  }
  Run run{target, generator_slot, std::nullopt};
  if (generator_slot || op.hasTag(at::Tag::nondeterministic_seeded)) run.seed = draw(npu_generator(generator, target), 4);
  if (graph) keep_written(graph, schema, given);
  run(op, stack);
  call.write_back_shapes();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
    IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.to_npu(value.toTensor());
    } else if (value.isTensorList()) {
      value = mapped(value.toTensorList(), [&](const at::Tensor& tensor) { return call.to_npu(tensor); });
    }
  }
  if (graph) record(graph, op, given, *stack, run);
}

}  // namespace simnpu
