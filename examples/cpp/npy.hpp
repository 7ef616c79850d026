// Arrays and NumPy's .npy files: https://numpy.org/doc/stable/reference/generated/numpy.lib.format
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace mpq {

// What kernels assume of the memory that they read and write.
constexpr std::align_val_t kAlignment{64};

struct Freed {
  void operator()(std::byte* memory) const { ::operator delete[](memory, kAlignment); }
};

/// Bytes at an address that kernels accept.
struct Buffer {
  std::size_t size = 0;
  std::unique_ptr<std::byte[], Freed> memory;

  explicit Buffer(std::size_t bytes)
      : size(bytes), memory(new (kAlignment) std::byte[bytes > 0 ? bytes : 1]) {}
  char* data() const { return reinterpret_cast<char*>(memory.get()); }
};

/// Element type as .npy files spell it ("<f4", "|u1"), and shape.
struct TensorType {
  std::string descr;
  std::vector<std::int64_t> shape;

  std::int64_t cells() const {
    return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  }
  std::size_t bytes() const { return cells() * std::stoul(descr.substr(2)); }
  bool operator==(const TensorType& other) const {
    return descr == other.descr && shape == other.shape;
  }
  /// The shape as Python writes a tuple.
  std::string tuple() const {
    std::string text;
    for (auto size : shape) text += std::to_string(size) + ", ";
    if (shape.size() > 1) text.resize(text.size() - 2);
    if (shape.size() == 1) text.pop_back();
    return "(" + text + ")";
  }
  std::string text() const { return descr + tuple(); }
};

struct Array {
  TensorType type;
  Buffer values;

  explicit Array(TensorType t) : type(std::move(t)), values(type.bytes()) {}
};

/// Fill `buffer` from a stream that has at least as many bytes left.
inline void read_into(std::istream& stream, const Buffer& buffer, const std::string& where) {
  if (!stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size))) {
    throw std::runtime_error(where + ": ends before " + std::to_string(buffer.size) +
                             " bytes of data");
  }
}

/// Return what stands behind `key` in the header's dictionary.
inline std::string entry(const std::string& header, const std::string& key) {
  const auto at = header.find("'" + key + "':");
  if (at == std::string::npos) throw std::runtime_error("no " + key + " in the header");
  return header.substr(header.find_first_not_of(' ', at + key.size() + 3));
}

inline TensorType parse_header(const std::string& header) {
  const auto descr = entry(header, "descr");
  if (descr[0] != '\'') throw std::runtime_error("records are not supported");
  TensorType type{descr.substr(1, descr.find('\'', 1) - 1), {}};
  const auto shape = entry(header, "shape");
  for (std::size_t at = 1; shape[at] != ')';) {
    std::size_t used = 0;
    type.shape.push_back(std::stoll(shape.substr(at), &used));
    at = shape.find_first_not_of(", ", at + used);
  }
  if (entry(header, "fortran_order").rfind("False", 0) != 0) {
    throw std::runtime_error("Fortran order; write np.ascontiguousarray(x)");
  }
  return type;
}

/// Read a .npy file of a plain type.
inline Array read_npy(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  unsigned char lead[12] = {};
  stream.read(reinterpret_cast<char*>(lead), 10);
  if (!stream || std::string(lead, lead + 6) != "\x93NUMPY") {
    throw std::runtime_error(path.string() + ": no .npy file");
  }
  std::size_t length = lead[8] | lead[9] << 8;
  if (lead[6] > 1) {  // from version 2 on the length has four bytes
    stream.read(reinterpret_cast<char*>(lead + 10), 2);
    length |= static_cast<std::size_t>(lead[10]) << 16 | static_cast<std::size_t>(lead[11]) << 24;
  }
  std::string header(length, ' ');
  stream.read(header.data(), static_cast<std::streamsize>(length));
  try {
    Array array(parse_header(header));
    read_into(stream, array.values, "data");
    return array;
  } catch (const std::exception& error) {
    throw std::runtime_error(path.string() + ": " + error.what());
  }
}

/// Write a .npy file of version 1.
inline void write_npy(const std::filesystem::path& path, const Array& array) {
  std::string header = "{'descr': '" + array.type.descr +
                       "', 'fortran_order': False, 'shape': " + array.type.tuple() + ", }";
  header.resize((10 + header.size() + 64) / 64 * 64 - 11, ' ');  // the data begin at a multiple
  header += '\n';
  const char length[] = {static_cast<char>(header.size() & 255),
                         static_cast<char>(header.size() >> 8)};
  std::ofstream stream(path, std::ios::binary);
  stream.write("\x93NUMPY\x01\x00", 8).write(length, 2) << header;
  stream.write(array.values.data(), static_cast<std::streamsize>(array.values.size)).flush();
  if (!stream) throw std::runtime_error(path.string() + ": cannot be written");
}

}  // namespace mpq
