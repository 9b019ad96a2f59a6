// Points the aten operators of the real torch_npu at the CPU's kernels, and offers a few operators to Python.
#include <algorithm>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <atomic>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "fallback.h"
#include "torch_npu/csrc/core/NPUStorageImpl.h"

extern "C" const char* aclrtGetSocName();

namespace simnpu {
namespace {

using c10::DispatchKey;

std::mutex counting;
std::unordered_map<std::string, int64_t> counted;
std::atomic<bool> counts{false};

// What torch_npu does well without a device: its tensors have a storage class of their own, so it must make them.
bool stays_with_torch_npu(const std::string& name) {
  static const std::unordered_set<std::string> names{
      "aten::empty", "aten::empty_strided", "aten::empty_like", "aten::empty_with_swapped_memory", "aten::as_strided",
      "aten::as_strided_",
      "aten::view", "aten::_reshape_alias", "aten::set_", "aten::resize_", "aten::resize_as_", "aten::record_stream",
      "aten::_pin_memory", "aten::pin_memory", "aten::is_pinned", "aten::_has_compatible_shallow_copy_type",
      "aten::_copy_from_and_resize", "aten::contiguous", "aten::unfold", "aten::view_as_real", "aten::view_as_complex",
      "aten::to", "aten::_to_copy", "aten::_lazy_clone", "aten::alias", "aten::_conj",
      // its own attention, which calls npu_fusion_attention
      "aten::scaled_dot_product_attention", "aten::_fused_sdp_choice"};
  return names.count(name) > 0 || name.find("_scaled_dot_product") != std::string::npos;
}

template <DispatchKey key>
void run_kernel_of(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  op.callBoxedForDispatchKey(key, *stack);
}

// Views and factories made of other operators must run on npu tensors; anything else may run on the CPU whole.
bool is_view_or_factory(const c10::FunctionSchema& schema) {
  for (const auto& result : schema.returns()) {
    if (result.alias_info() != nullptr && !schema.is_mutable()) return true;
  }
  for (const auto& argument : schema.arguments()) {
    if (argument.name() == "device") return true;
  }
  return false;
}

std::string short_name(const c10::OperatorName& name) {
  const auto full = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
  return full.substr(std::string("aten::").size());
}

// torch_npu has autograd kernels of its own for some operators, which call device kernels: use torch's.
void restore_autograd(torch::Library& library, const c10::OperatorHandle& op, const std::string& name) {
  if (!op.hasKernelForDispatchKey(DispatchKey::AutogradPrivateUse1)) return;
  if (op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd)) {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_kernel_of<DispatchKey::CompositeImplicitAutograd>>());
  } else if (op.hasKernelForDispatchKey(DispatchKey::Autograd)) {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_kernel_of<DispatchKey::Autograd>>());
  }
}

// torch_npu divides integers in place and cuts off the rest (the average of a collective relies on it); the CPU refuses.
void divide_in_place(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto self = torch::jit::peek(*stack, 0, 2).toTensor();
  if (!c10::isIntegralType(self.scalar_type(), /*includeBool=*/false)) return run_on_cpu(op, stack);
  const auto other = torch::jit::pop(*stack);
  if (other.isTensor()) {
    self.div_(other.toTensor(), "trunc");
  } else {
    self.div_(other.toScalar(), "trunc");
  }
}

// Copies between the host and cards, or between cards, go one by one.
void copy_each(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto base = stack->size() - op.schema().arguments().size();
  const auto targets = (*stack)[base].toTensorVector(), sources = (*stack)[base + 1].toTensorVector();
  const bool non_blocking = (*stack)[base + 2].toBool();
  const auto elsewhere = [&](const at::Tensor& tensor) { return tensor.device() != targets[0].device(); };
  if (targets.size() != sources.size() || !(std::any_of(targets.begin(), targets.end(), elsewhere) ||
                                            std::any_of(sources.begin(), sources.end(), elsewhere))) {
    return run_on_cpu(op, stack);
  }
  torch::jit::drop(*stack, op.schema().arguments().size());
  for (size_t i = 0; i < targets.size(); i++) targets[i].copy_(sources[i], non_blocking);
}

// CANN's function and the name of a type in its messages.
const char* cann_function(const std::string& name) {
  if (name == "aten::addmm") return "aclnnAddmm";
  if (name == "aten::baddbmm") return "aclnnBaddbmm";
  return name == "aten::convolution" ? "aclnnConvolution" : "aclnnMatmul";
}

std::string cann_type(at::ScalarType type) {
  static const std::unordered_map<at::ScalarType, std::string> names{
      {at::kDouble, "DT_DOUBLE"}, {at::kBFloat16, "DT_BFLOAT16"}, {at::kByte, "DT_UINT8"}, {at::kChar, "DT_INT8"},
      {at::kShort, "DT_INT16"},   {at::kInt, "DT_INT32"},         {at::kLong, "DT_INT64"}, {at::kBool, "DT_BOOL"},
      {at::kComplexFloat, "DT_COMPLEX64"}, {at::kComplexDouble, "DT_COMPLEX128"}};
  const auto found = names.find(type);
  return found == names.end() ? c10::str("DT_", c10::toString(type)) : found->second;
}

// All but the chips of before the 910B1.
bool has_bf16() {
  static const std::unordered_set<std::string> older{"Ascend910PremiumA", "Ascend910ProA", "Ascend910A", "Ascend910ProB",
                                                     "Ascend910B"};
  const std::string name = aclrtGetSocName();
  return older.count(name) == 0 && name.rfind("Ascend310P", 0) != 0;
}

// The units that multiply know few types: float64 and integers run on the CPU only, bf16 from the 910B on.
void refuse_types_of_no_cube(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const auto& arguments = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto& value = stack[stack.size() - arguments.size() + i];
    if (!value.isTensor() || !value.toTensor().defined() || !value.toTensor().device().is_privateuseone()) continue;
    const auto type = value.toTensor().scalar_type();
    if (type == at::kFloat || type == at::kHalf || (type == at::kBFloat16 && has_bf16())) continue;
    TORCH_CHECK(false, "call ", cann_function(op.schema().name()), " failed, error code is 161002",
                error_tail(value.toTensor().device().index(), "ERR00100 PTA call acl api failed."),
                "\nAclNN_Parameter_Error(EZ1001): Tensor ", arguments[i].name(), " not implemented for ", cann_type(type),
                ", should be in dtype support list [DT_FLOAT,DT_FLOAT16,", has_bf16() ? "DT_BFLOAT16,]." : "].");
  }
}

void convolve(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  refuse_types_of_no_cube(op, *stack);
  run_on_cpu(op, stack);
}

// A card multiplies matrices of two types as the wider one (a recurrent layer relies on it); the CPU refuses.
void multiply(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  refuse_types_of_no_cube(op, *stack);
  const size_t base = stack->size() - op.schema().arguments().size();
  std::optional<at::ScalarType> widest;
  bool differ = false;
  for (size_t i = base; i < stack->size(); i++) {
    if (!(*stack)[i].isTensor()) continue;
    const auto type = (*stack)[i].toTensor().scalar_type();
    differ = differ || (widest && *widest != type);
    widest = widest ? c10::promoteTypes(*widest, type) : type;
  }
  for (size_t i = base; differ && i < stack->size(); i++) {
    if ((*stack)[i].isTensor()) (*stack)[i] = (*stack)[i].toTensor().to(*widest);
  }
  run_on_cpu(op, stack);
}

// Of its own parts, as the lengths it takes and the sizes of batches it returns are the host's.
bool runs_in_parts(const std::string& name) { return name == "_pack_padded_sequence"; }

bool replace_kernel(torch::Library& library, const c10::OperatorHandle& op, const std::string& name) {
  const bool has_npu = op.hasKernelForDispatchKey(DispatchKey::PrivateUse1);
  const bool has_cpu = op.hasKernelForDispatchKey(DispatchKey::CPU);
  const bool is_explicit = op.hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutograd);
  const bool is_structured = op.hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutogradNonFunctional);
  const bool is_implicit = op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd);
  // torch_npu runs such an operator in its parts, or warns and runs it on copies on the CPU, and so it does here.
  if (!has_npu) return false;
  if (name == "div_.Tensor" || name == "div_.Scalar") {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&divide_in_place>());
  } else if (name == "_foreach_copy_") {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&copy_each>());
  } else if (name == "convolution") {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&convolve>());
  } else if (name == "mm" || name == "bmm" || name == "addmm" || name == "baddbmm") {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&multiply>());
  } else if (has_cpu || name == "copy_" ||
             ((is_explicit || is_structured) && !is_view_or_factory(op.schema()) && !runs_in_parts(name))) {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  } else if (is_explicit) {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_kernel_of<DispatchKey::CompositeExplicitAutograd>>());
  } else if (is_implicit) {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_kernel_of<DispatchKey::CompositeImplicitAutograd>>());
  } else {
    return false;
  }
  return true;
}

// torch warns for every kernel that is registered over another.
struct Quiet : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

const torch_npu::NPUStorageDesc& description(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.device().is_privateuseone(), "Expected an npu tensor, got one on ", tensor.device());
  return static_cast<torch_npu::NPUStorageImpl*>(tensor.storage().unsafeGetStorageImpl())->npu_desc_;
}

// Formats are only recorded: the bytes stay in the plain order.
at::Tensor set_format(const at::Tensor& tensor, int64_t format) {
  const_cast<torch_npu::NPUStorageDesc&>(description(tensor)).npu_format_ = static_cast<aclFormat>(format);
  return tensor;
}

int64_t get_format(const at::Tensor& tensor) { return description(tensor).npu_format_; }

void set_counting(bool on) { counts = on; }

}  // namespace

void count(const std::string& what, int64_t by) {
  if (!counts) return;
  std::lock_guard<std::mutex> guard(counting);
  counted[what] += by;
}

c10::Dict<std::string, int64_t> counters() {
  std::lock_guard<std::mutex> guard(counting);
  c10::Dict<std::string, int64_t> result;
  for (const auto& [what, number] : counted) result.insert(what, number);
  counted.clear();
  return result;
}

int64_t install() {
  static auto* kernels = new torch::Library(torch::Library::IMPL, "aten", DispatchKey::PrivateUse1, __FILE__, __LINE__);
  static auto* autograd = new torch::Library(torch::Library::IMPL, "aten", DispatchKey::AutogradPrivateUse1, __FILE__, __LINE__);
  Quiet quiet;
  c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  auto& dispatcher = c10::Dispatcher::singleton();
  int64_t replaced = 0;
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0 || stays_with_torch_npu(name.name)) continue;
    const auto op = dispatcher.findOp(name);
    if (!op || !op->hasSchema()) continue;
    restore_autograd(*autograd, *op, short_name(name));
    if (replace_kernel(*kernels, *op, short_name(name))) replaced++;
  }
  return replaced;
}

TORCH_LIBRARY(simnpu, m) {
  m.def("install() -> int", &install);
  m.def("count(str what) -> ()", [](const std::string& what) { count(what); });
  m.def("counters() -> Dict(str, int)", &counters);
  m.def("set_counting(bool on) -> ()", &set_counting);
  m.def("cpu_alias(Tensor tensor) -> Tensor");
  m.def("set_format(Tensor tensor, int format) -> Tensor");
  m.def("get_format(Tensor tensor) -> int");
}

TORCH_LIBRARY_IMPL(simnpu, CompositeImplicitAutograd, m) {
  m.impl("cpu_alias", cpu_alias);
  m.impl("set_format", set_format);
  m.impl("get_format", get_format);
}

}  // namespace simnpu
