// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) for host and device,
// and the counter layout of pyengm: every value is a function of (seed, purpose, epoch, example, position).
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace pyengm {

struct Words {
  uint32_t w[4];
};

struct Stream {  // the part of the key that all values of one call have in common
  uint32_t key0, key1, epoch, purpose;
};

PYENGM_HD Words philox4x32(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c.w[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c.w[2];
    c = {{uint32_t(p1 >> 32) ^ c.w[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.w[3] ^ k1, uint32_t(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// Block b of an example gives its values 4b to 4b+3.
PYENGM_HD Words block_words(Stream s, uint32_t example, uint32_t block) {
  return philox4x32({{block, example, s.epoch, s.purpose}}, s.key0, s.key1);
}

// 24 bits: every value is a float32 in [0, 1), all equally likely.
PYENGM_HD float uniform_of(uint32_t word) { return float(word >> 8) * 0x1p-24f; }

// Box-Muller on a pair of words; in double, so that all backends round the same values to float32.
PYENGM_HD void normals_of(uint32_t a, uint32_t b, float* first, float* second) {
  const double radius = sqrt(-2.0 * log((double(a) + 1.0) * 0x1p-32));
  const double angle = double(b) * (6.283185307179586 * 0x1p-32);
  *first = float(radius * cos(angle));
  *second = float(radius * sin(angle));
}

PYENGM_HD void block_uniform(Stream s, uint32_t example, uint32_t block, float out[4]) {
  const Words r = block_words(s, example, block);
  for (int i = 0; i < 4; ++i) out[i] = uniform_of(r.w[i]);
}

PYENGM_HD void block_normal(Stream s, uint32_t example, uint32_t block, float out[4]) {
  const Words r = block_words(s, example, block);
  normals_of(r.w[0], r.w[1], &out[0], &out[1]);
  normals_of(r.w[2], r.w[3], &out[2], &out[3]);
}

}  // namespace pyengm
