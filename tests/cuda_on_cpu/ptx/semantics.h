// What the instructions of PTX compute, as its manual ("Parallel Thread Execution ISA") defines them. Where it leaves a
// result open, the launch ends with an error.
#pragma once
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "device.h"
#include "grid.h"

namespace ptx {

// Announces a kernel to host_calls.cpp.
void entry(const char* name, void (*body)(void**), int most_threads);

// ---- registers

template <typename To, typename From>
To as(From from) {  // the same bits
  static_assert(sizeof(To) == sizeof(From), "an operand has another size than its instruction");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <typename To, typename From>
void set(To& to, From from) {
  to = as<To>(from);
}

template <typename To, typename From>
To low(From from) {
  if constexpr (sizeof(To) == sizeof(From)) return as<To>(from);
  static_assert(sizeof(To) <= sizeof(From), "an operand is smaller than its instruction");
  return To(from);
}

template <typename T>
T unset() {
  if constexpr (std::is_floating_point_v<T>) return std::numeric_limits<T>::quiet_NaN();
  return T(0xa5a5a5a5a5a5a5a5u);
}

// ---- integers, which wrap

template <typename T>
using Unsigned = std::make_unsigned_t<T>;
template <typename T>
using IfInteger = std::enable_if_t<std::is_integral_v<T>, T>;
template <typename T>
using IfFloat = std::enable_if_t<std::is_floating_point_v<T>, T>;
template <typename T>
using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;

template <typename T>
T do_add(T a, T b) {
  return T(Unsigned<T>(a) + Unsigned<T>(b));
}
template <typename T>
T do_sub(T a, T b) {
  return T(Unsigned<T>(a) - Unsigned<T>(b));
}
template <typename T>
T do_mul_lo(T a, T b) {
  return T(Unsigned<T>(a) * Unsigned<T>(b));
}
template <typename T>
T do_mad_lo(T a, T b, T c) {
  return do_add(do_mul_lo(a, b), c);
}
template <typename T>
Wide<T> do_mul_wide(T a, T b) {
  static_assert(sizeof(T) == 4);
  return Wide<T>(a) * Wide<T>(b);
}
template <typename T>
T do_mul_hi(T a, T b) {
  return T(do_mul_wide(a, b) >> 32);
}
template <typename T>
void check_division(T a, T b) {
  if (b == 0) emu::fail("a division by zero");
  if (std::is_signed_v<T> && a == std::numeric_limits<T>::min() && b == T(-1)) emu::fail("a quotient that overflows");
}
template <typename T>
T do_div(T a, T b) {
  check_division(a, b);
  return T(a / b);
}
template <typename T>
T do_rem(T a, T b) {
  check_division(a, b);
  return T(a % b);
}
template <typename T>
IfInteger<T> do_min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
IfInteger<T> do_max(T a, T b) {
  return a < b ? b : a;
}
template <typename T>
IfInteger<T> do_neg(T a) {
  return T(-Unsigned<T>(a));
}
template <typename T>
IfInteger<T> do_abs(T a) {
  return a < 0 ? do_neg(a) : a;
}
template <typename T>
T do_shl(T a, uint32_t by) {
  return by >= 8 * sizeof(T) ? T(0) : T(a << by);
}
template <typename T>
T do_shr(T a, uint32_t by) {  // a signed number keeps its sign
  const uint32_t most = 8 * sizeof(T) - 1;
  return by > most ? (std::is_signed_v<T> ? T(a >> most) : T(0)) : T(a >> by);
}
template <typename T>
T do_bfi(T a, T b, uint32_t at, uint32_t length) {  // the lowest bits of a over those of b
  const uint32_t bits = 8 * sizeof(T), first = at & 0xff, count = length & 0xff;
  if (first >= bits) return b;
  const T mask = T((count >= bits ? T(-1) : T((T(1) << count) - 1)) << first);
  return T((b & ~mask) | (T(a << first) & mask));
}
template <typename T>
uint32_t do_clz(T a) {
  uint32_t zeros = 0;
  for (uint32_t bit = 8 * sizeof(T); bit-- > 0 && !(a >> bit & 1);) ++zeros;
  return zeros;
}
template <typename T>
T do_and(T a, T b) {
  return T(a & b);
}
template <typename T>
T do_or(T a, T b) {
  return T(a | b);
}
template <typename T>
T do_xor(T a, T b) {
  return T(a ^ b);
}
template <typename T>
T do_not(T a) {
  return T(~a);
}
inline bool do_not(bool a) { return !a; }

// ---- sums of several registers: the carry, or the borrow, goes from one to the next

inline uint32_t with_carry(uint64_t sum, bool& carry) {
  carry = sum >> 32 & 1;
  return uint32_t(sum);
}
inline uint32_t do_add_cc(uint32_t a, uint32_t b, bool& carry) { return with_carry(uint64_t(a) + b, carry); }
inline uint32_t do_addc(uint32_t a, uint32_t b, bool carry) { return a + b + carry; }
inline uint32_t do_addc_cc(uint32_t a, uint32_t b, bool& carry) { return with_carry(uint64_t(a) + b + carry, carry); }
inline uint32_t do_sub_cc(uint32_t a, uint32_t b, bool& carry) { return with_carry(uint64_t(a) - b, carry); }
inline uint32_t do_subc(uint32_t a, uint32_t b, bool carry) { return a - b - carry; }
inline uint32_t do_subc_cc(uint32_t a, uint32_t b, bool& carry) { return with_carry(uint64_t(a) - b - carry, carry); }
inline uint32_t do_mad_lo_cc(uint32_t a, uint32_t b, uint32_t c, bool& carry) { return do_add_cc(a * b, c, carry); }
inline uint32_t do_madc_lo(uint32_t a, uint32_t b, uint32_t c, bool carry) { return do_addc(a * b, c, carry); }
inline uint32_t do_madc_lo_cc(uint32_t a, uint32_t b, uint32_t c, bool& carry) { return do_addc_cc(a * b, c, carry); }
inline uint32_t do_madc_hi(uint32_t a, uint32_t b, uint32_t c, bool carry) {
  return do_addc(do_mul_hi(a, b), c, carry);
}
inline uint32_t do_madc_hi_cc(uint32_t a, uint32_t b, uint32_t c, bool& carry) {
  return do_addc_cc(do_mul_hi(a, b), c, carry);
}

// ---- floating-point numbers, rounded to nearest

template <typename T>
T do_add_rn(T a, T b) {
  return a + b;
}
template <typename T>
T do_sub_rn(T a, T b) {
  return a - b;
}
template <typename T>
T do_mul_rn(T a, T b) {
  return a * b;
}
template <typename T>
T do_div_rn(T a, T b) {
  return a / b;
}
template <typename T>
T do_fma_rn(T a, T b, T c) {
  return std::fma(a, b, c);
}
template <typename T>
T do_sqrt_rn(T a) {
  return std::sqrt(a);
}
template <typename T>
IfFloat<T> do_neg(T a) {
  return -a;
}
template <typename T>
IfFloat<T> do_abs(T a) {
  return std::fabs(a);
}
template <typename T>
IfFloat<T> do_max(T a, T b) {  // the other one, where one is not a number; +0 is above -0
  if (a != a) return b;
  if (a == b) return std::signbit(a) ? b : a;
  return a < b ? b : a;
}
template <typename T>
IfFloat<T> do_min(T a, T b) {
  return -do_max(-a, -b);
}
// Of the upper 32 bits of a; the lower 32 of the result are zero. nvcc refines it by Newton's steps.
inline double do_rcp_approx_ftz(double a) {
  const auto upper = [](double value) { return as<double>(as<uint64_t>(value) >> 32 << 32); };
  return upper(1.0 / upper(a));
}

// ---- choices

template <typename T>
T do_mov(T a) {
  return a;
}
// The spaces of all addresses but those of shared memory are one here.
template <typename T>
T do_cvta_to_global(T a) {
  return a;
}
template <typename T>
T do_cvta_local(T a) {
  return a;
}
template <typename T>
T do_cvta_to_local(T a) {
  return a;
}
template <typename T>
T do_selp(T a, T b, bool first) {
  return first ? a : b;
}
template <typename T>
bool unordered(T a, T b) {
  return a != a || b != b;
}
template <typename T>
bool do_setp_eq(T a, T b) {
  return a == b;
}
template <typename T>
bool do_setp_ne(T a, T b) {
  return !unordered(a, b) && a != b;
}
template <typename T>
bool do_setp_lt(T a, T b) {
  return a < b;
}
template <typename T>
bool do_setp_le(T a, T b) {
  return a <= b;
}
template <typename T>
bool do_setp_gt(T a, T b) {
  return a > b;
}
template <typename T>
bool do_setp_ge(T a, T b) {
  return a >= b;
}
template <typename T>
bool do_setp_equ(T a, T b) {
  return unordered(a, b) || a == b;
}
template <typename T>
bool do_setp_neu(T a, T b) {
  return a != b;
}
template <typename T>
bool do_setp_ltu(T a, T b) {
  return !(a >= b);
}
template <typename T>
bool do_setp_leu(T a, T b) {
  return !(a > b);
}
template <typename T>
bool do_setp_gtu(T a, T b) {
  return !(a <= b);
}
template <typename T>
bool do_setp_geu(T a, T b) {
  return !(a < b);
}
template <typename T>
bool do_setp_num(T a, T b) {
  return !unordered(a, b);
}
template <typename T>
bool do_setp_nan(T a, T b) {
  return unordered(a, b);
}

// ---- conversions

template <typename To, typename From>
To do_cvt(From from) {
  if constexpr (std::is_same_v<From, __half>)
    return __half2float(from);
  else
    return To(from);
}
template <typename To, typename From>
To do_cvt_rn(From from) {
  if constexpr (std::is_same_v<To, __half>)
    return __float2half_rn(from);
  else if constexpr (std::is_same_v<To, __nv_bfloat16>)
    return __float2bfloat16_rn(from);
  else
    return To(from);
}
template <typename To, typename From>
To saturated(From whole) {  // of a number without a fraction
  using Limits = std::numeric_limits<To>;
  constexpr bool wide = sizeof(From) == 8 || sizeof(To) == 8;
  if (whole != whole) return wide ? To(To(1) << (8 * sizeof(To) - 1)) : To(0);
  if (whole <= From(Limits::min())) return Limits::min();
  return whole >= From(Limits::max()) ? Limits::max() : To(whole);
}
template <typename To, typename From>
To do_cvt_rni(From from) {
  return saturated<To>(std::nearbyint(from));
}
template <typename To, typename From>
To do_cvt_rzi(From from) {
  return saturated<To>(std::trunc(from));
}

// ---- lanes

inline uint32_t do_shfl_bfly(uint32_t own, uint32_t distance, uint32_t segment, uint32_t mask, const char* file,
                             int line) {
  if (segment != 31) emu::fail("a shuffle in segments of a warp, which are not translated");
  return uint32_t(emu::exchange(mask, own, int(distance), sizeof own, file, line));
}

// ---- memory

inline uint64_t address(const void* at) { return reinterpret_cast<uint64_t>(at); }
inline const char* parameter(const char* at, int offset) { return at + offset; }
inline char* parameter(char* at, int offset) { return at + offset; }
// Addresses in shared memory count from the start of the block's.
inline uint64_t shared(uint32_t offset) { return address(emu::shared_memory()) + offset; }
inline uint32_t shared_address(const void* key, size_t bytes) {
  return uint32_t(address(emu::shared_array(key, bytes)) - address(emu::shared_memory()));
}

template <bool write, bool strong, bool constant>
[[gnu::noinline]] char* access(uint64_t at, size_t bytes) {  // a function of its own: it returns to the PTX's line
  auto* place = reinterpret_cast<char*>(at);
  emu::check_instruction(place, bytes, write, strong, constant, __builtin_return_address(0));
  return place;
}
inline const auto weak_read = access<false, false, false>;
inline const auto weak_write = access<true, false, false>;
inline const auto strong_read = access<false, true, false>;
inline const auto strong_write = access<true, true, false>;
inline const auto constant_read = access<false, false, true>;  // ld.global.nc

template <typename T, typename Register>
void load(const char* at, Register& to) {  // a register that is wider gets zeros, or the sign
  T value;
  memcpy(&value, at, sizeof value);
  if constexpr (sizeof(T) == sizeof(Register)) {
    to = as<Register>(value);
  } else {
    static_assert(sizeof(T) < sizeof(Register) && std::is_integral_v<Register>);
    to = Register(value);
  }
}
template <typename T, typename Register>
void store(char* at, Register from) {
  const T value = low<T>(from);
  memcpy(at, &value, sizeof value);
}

}  // namespace ptx
