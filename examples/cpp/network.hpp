// A network that `mpq export ARTIFACT --native DIR` wrote, run by TVM's runtime.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "npy.hpp"

namespace mpq {

/// The checksum of gzip and zlib. It finds damage, not forgery: a library is native code.
inline std::uint32_t crc32(const Buffer& buffer) {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t word = i;
    for (int bit = 0; bit < 8; ++bit) word = word & 1 ? word >> 1 ^ 0xEDB88320u : word >> 1;
    table[i] = word;
  }
  std::uint32_t sum = ~0u;
  for (std::size_t i = 0; i < buffer.size; ++i) {
    sum = sum >> 8 ^ table[(sum ^ static_cast<unsigned char>(buffer.data()[i])) & 255];
  }
  return ~sum;
}

/// What `network.txt` says; each line is a key and its values.
struct Description {
  struct File {
    std::string name, crc;
    std::size_t size = 0;
  };
  File library, parameters;
  std::string tier, threads;
  std::vector<std::string> flags;
  std::size_t arena = 0;
  std::vector<TensorType> inputs, outputs;
  // Inputs that the network changes in place, such as caches, and the outputs that they are.
  std::map<std::size_t, std::size_t> updates;
};

inline TensorType parse_tensor(std::istream& values) {
  TensorType type;
  values >> type.descr;
  for (std::int64_t size; values >> size;) type.shape.push_back(size);
  return type;
}

inline Description read_description(const std::filesystem::path& path) {
  std::ifstream stream(path);
  std::string line;
  if (!std::getline(stream, line) || line != "mpq-network 1") {
    throw std::runtime_error(path.string() + ": expected 'mpq-network 1', found '" + line + "'");
  }
  Description made;
  while (std::getline(stream, line)) {
    std::istringstream values(line);
    std::string key;
    values >> key;
    if (key == "library") values >> made.library.name >> made.library.size >> made.library.crc;
    if (key == "parameters") {
      values >> made.parameters.name >> made.parameters.size >> made.parameters.crc;
    }
    if (key == "tier") values >> made.tier;
    if (key == "threads") values >> made.threads;
    if (key == "arena") values >> made.arena;
    if (key == "flags") for (std::string flag; values >> flag;) made.flags.push_back(flag);
    if (key == "input") made.inputs.push_back(parse_tensor(values));
    if (key == "output") made.outputs.push_back(parse_tensor(values));
    if (key == "update") {
      std::size_t output = 0, input = 0;
      values >> output >> input;
      made.updates[input] = output;
    }
  }
  return made;
}

/// Read a file whose size and checksum must be those described.
inline Buffer read_checked(const std::filesystem::path& folder, const Description::File& file) {
  const auto path = folder / file.name;
  std::ifstream stream(path, std::ios::binary);
  Buffer content(file.size);
  read_into(stream, content, path.string());
  if (crc32(content) != std::stoul(file.crc, nullptr, 16) || stream.peek() != EOF) {
    throw std::runtime_error(path.string() + ": damaged; its checksum is not " + file.crc);
  }
  return content;
}

/// Refuse a CPU without the instructions of the kernels, which would end the process.
inline void check_cpu(const Description& network) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::set<std::string> found;
  for (std::string line; found.empty() && std::getline(cpuinfo, line);) {
    if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string flag; words >> flag;) found.insert(flag);
  }
  for (const auto& flag : network.flags) {
    if (found.count(flag) > 0) continue;
    throw std::runtime_error("built for " + network.tier + ": this CPU lacks " + flag);
  }
}

/// Ask Linux for the tile registers, once a process; kernels of other tiers do not need them.
inline void request_tiles([[maybe_unused]] const Description& network) {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (network.tier == "amx") syscall(SYS_arch_prctl, kRequestPermission, kTileData);
#endif
}

/// A flat view for a library's function.
inline DLTensor view(char* data, const std::string& descr, std::int64_t* cells) {
  const std::uint8_t code = descr[1] == 'f'   ? kDLFloat
                            : descr[1] == 'u' ? kDLUInt
                            : descr[1] == 'b' ? kDLBool
                                              : kDLInt;
  const auto bits = static_cast<std::uint8_t>(8 * std::stoi(descr.substr(2)));
  return DLTensor{data, {kDLCPU, 0}, 1, {code, bits, 1}, cells, nullptr, 0};
}

/// A loaded network. One call at a time: it computes in an arena of its own.
class Network {
 public:
  explicit Network(const std::filesystem::path& folder)
      : description_(read_description(folder / "network.txt")),
        parameters_(read_checked(folder, description_.parameters)),
        arena_(description_.arena) {
    check_cpu(description_);
    request_tiles(description_);
    // TVM reads it when the first kernel runs; what the user has set stays.
    setenv("TVM_NUM_THREADS", description_.threads.c_str(), 0);
    read_checked(folder, description_.library);
    using tvm::ffi::Function;
    const auto load = Function::GetGlobalRequired("ffi.ModuleLoadFromFile");
    const auto path = std::filesystem::absolute(folder / description_.library.name);
    library_ = load(path.string());
    main_ = Function::GetGlobalRequired("ffi.ModuleGetFunction")(library_, "main", false)
                .cast<Function>();
  }

  const std::vector<TensorType>& inputs() const { return description_.inputs; }
  const std::vector<TensorType>& outputs() const { return description_.outputs; }

  /// Run on arrays of the compiled types; `outputs` are overwritten.
  void run(const std::vector<Array>& inputs, const std::vector<Array>& outputs) {
    const std::size_t count = inputs.size() + 2 + outputs.size();
    std::vector<std::int64_t> cells;
    std::vector<DLTensor> tensors;
    cells.reserve(count), tensors.reserve(count);  // views point into `cells`
    const auto add = [&](const Buffer& buffer, const std::string& descr, std::int64_t size) {
      cells.push_back(size);
      tensors.push_back(view(buffer.data(), descr, &cells.back()));
    };
    std::vector<bool> is_input(outputs.size());
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const auto update = description_.updates.find(i);
      const auto& array = update == description_.updates.end() ? inputs[i] : outputs[update->second];
      if (&array != &inputs[i]) {  // a copy is changed: inputs stay as they are
        std::memcpy(array.values.data(), inputs[i].values.data(), inputs[i].values.size);
        is_input[update->second] = true;
      }
      add(array.values, array.type.descr, array.type.cells());
    }
    add(parameters_, "|u1", static_cast<std::int64_t>(parameters_.size));
    add(arena_, "<i4", static_cast<std::int64_t>(arena_.size / 4));
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (!is_input[i]) add(outputs[i].values, outputs[i].type.descr, outputs[i].type.cells());
    }
    std::vector<tvm::ffi::AnyView> arguments;
    for (auto& tensor : tensors) arguments.emplace_back(&tensor);
    tvm::ffi::Any nothing;
    main_.CallPacked(arguments.data(), static_cast<std::int32_t>(arguments.size()), &nothing);
  }

 private:
  Description description_;
  Buffer parameters_, arena_;
  tvm::ffi::Any library_;  // functions do not keep their library loaded
  tvm::ffi::Function main_{nullptr};
};

}  // namespace mpq
