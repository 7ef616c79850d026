// Runs an exported network on .npy files: the whole of a program without Python.
//
//   run_artifact DIR INPUT.npy… [--out PREFIX] [--repeat N]
//
// writes PREFIX0.npy, PREFIX1.npy … and prints the median latency of N calls.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "network.hpp"

namespace {

struct Options {
  std::string folder, prefix = "output";
  std::vector<std::string> inputs;
  int repeat = 1;
};

Options parse(const std::vector<std::string>& words) {
  Options options;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const bool valued = words[i] == "--out" || words[i] == "--repeat";
    if (valued && i + 1 == words.size()) throw std::runtime_error(words[i] + " needs a value");
    if (words[i] == "--out") options.prefix = words[++i];
    else if (words[i] == "--repeat") options.repeat = std::max(1, std::stoi(words[++i]));
    else names.push_back(words[i]);
  }
  if (names.empty()) {
    throw std::runtime_error("usage: run_artifact DIR INPUT.npy… [--out PREFIX] [--repeat N]");
  }
  options.folder = names.front();
  options.inputs.assign(names.begin() + 1, names.end());
  return options;
}

std::vector<mpq::Array> read_inputs(const mpq::Network& network, const Options& options) {
  const auto& expected = network.inputs();
  if (options.inputs.size() != expected.size()) {
    throw std::runtime_error("expected " + std::to_string(expected.size()) + " inputs, found " +
                             std::to_string(options.inputs.size()));
  }
  std::vector<mpq::Array> arrays;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    arrays.push_back(mpq::read_npy(options.inputs[i]));
    if (arrays[i].type == expected[i]) continue;
    throw std::runtime_error(options.inputs[i] + ": expected " + expected[i].text() + ", found " +
                             arrays[i].type.text());
  }
  return arrays;
}

double median_ms(mpq::Network& network, const std::vector<mpq::Array>& inputs,
                 const std::vector<mpq::Array>& outputs, int repeat) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> calls;
  for (int i = 0; i < repeat; ++i) {
    const auto start = Clock::now();
    network.run(inputs, outputs);
    calls.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  const auto middle = calls.begin() + calls.size() / 2;
  std::nth_element(calls.begin(), middle, calls.end());
  return *middle;
}

void run(const Options& options) {
  mpq::Network network(options.folder);
  const auto inputs = read_inputs(network, options);
  std::vector<mpq::Array> outputs(network.outputs().begin(), network.outputs().end());
  network.run(inputs, outputs);  // the first call starts the threads
  if (options.repeat > 1) {
    std::printf("median of %d calls: %.4f ms\n", options.repeat,
                median_ms(network, inputs, outputs, options.repeat));
  }
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const auto path = options.prefix + std::to_string(i) + ".npy";
    mpq::write_npy(path, outputs[i]);
    std::printf("%s: %s\n", path.c_str(), outputs[i].type.text().c_str());
  }
}

}  // namespace

int main(int count, char** words) {
  try {
    run(parse({words + 1, words + count}));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_artifact: %s\n", error.what());
    return 2;
  }
}
