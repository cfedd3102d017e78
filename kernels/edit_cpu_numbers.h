// Numbers of kernels/edit_cpu.cpp: bfloat16 and float as stored, float32 vectors as computed with.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct BFloat16 {
    uint16_t bits;
};

inline float widened(float x) { return x; }

inline float widened(BFloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void store(float x, float* to) { *to = x; }

// as wide as the widest registers; compilers split it where they are narrower
typedef float Vector __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
constexpr int64_t kVector = 16;

inline void load(const float* from, Vector* to) { std::memcpy(to, from, sizeof *to); }

inline void load(const BFloat16* from, Vector* to) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    const Words words = __builtin_convertvector(halves, Words) << 16;
    std::memcpy(to, &words, sizeof words);
}

inline float sum_of(const Vector& vector) {
    float sum = 0.0f;
    for (int i = 0; i < kVector; ++i) sum += vector[i];
    return sum;
}

// rounds to nearest, ties to even; NaN stays NaN
inline void store(float x, BFloat16* to) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to->bits = uint16_t(x == x ? rounded : 0x7fc0);
}

}  // namespace
