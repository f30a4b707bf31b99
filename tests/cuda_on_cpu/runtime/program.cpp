// For programs with a main of their own: a fault ends them with the status that gpu_check.sh gives compute-sanitizer.
#include <cstdio>
#include <cstdlib>
#include <exception>

namespace {

constexpr int kFault = 99;

[[noreturn]] void end_with_fault() {
  try {
    if (const auto error = std::current_exception()) std::rethrow_exception(error);
  } catch (const std::exception& error) {
    fprintf(stderr, "%s\n", error.what());
  }
  _Exit(kFault);
}

[[gnu::constructor]] void install() { std::set_terminate(end_with_fault); }

}  // namespace
