// Edits that keep the norm, for kernels/edit_cpu.cpp: what `norm_factor` of kernels/edit_formula.py says.

#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "edit_cpu_numbers.h"

namespace {

// LEAST_SHARE of kernels/edit_formula.py: 2^-40
constexpr float kLeastShare = 1.0f / (1ull << 40);

// |x| / |x + moved|, and 1 where nothing is rescaled
inline float norm_factor(const float* x, const float* moved, int64_t width) {
    Vector befores{}, afters{};
    int64_t j = 0;
    for (; j + kVector <= width; j += kVector) {
        Vector value, change;
        load(x + j, &value);
        load(moved + j, &change);
        const Vector result = value + change;
        befores += value * value;
        afters += result * result;
    }
    float before = sum_of(befores), after = sum_of(afters);
    bool changed = false;
    for (; j < width; ++j) {
        const float result = x[j] + moved[j];
        before += x[j] * x[j];
        after += result * result;
    }
    for (j = 0; j < width; ++j) changed |= moved[j] != 0.0f;
    const bool scaled = changed && before > 0.0f && after > kLeastShare * before
        && after < std::numeric_limits<float>::infinity();
    return scaled ? std::sqrt(before / after) : 1.0f;
}

// moved = what turns x into x + moved rescaled to the norm of x
inline void keep_norm(const float* x, int64_t width, float* moved) {
    const float factor = norm_factor(x, moved, width), more = factor - 1.0f;
    if (more == 0.0f) return;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) moved[j] = factor * moved[j] + more * x[j];
}

}  // namespace
