// The edit formula of kernels/edit_formula.py for the tokens of one step at one site, on CPUs.
//
// Every edited token reads the rows of its own slot, so at many slots the time is that of reading the bank once: rows are
// read one after the other as they lie in memory, and a few rows ahead are fetched. Tokens are taken four at a time: where
// all four have one slot, a row is read and widened once for the four.

#include <cstdint>
#include <cstring>
#include <memory>

#include "edit_cpu_norm.h"
#include "edit_cpu_numbers.h"

namespace {

constexpr int kLanes = 4, kMaxRank = 32, kTokens = 4;
constexpr int32_t kResident = 1, kAffine = 2, kAnyGate = 4, kKeepNorm = 8;

template <typename Stored>
struct Slot {
    const Stored *scale, *shift, *read, *write;
    const float *bias, *gain, *offset, *threshold;
    int32_t rank, parts;
};

// the part of the bank that belongs to one site
template <typename Stored>
struct SiteBank {
    const Stored *scale, *shift, *read, *write;
    const float *bias, *gain, *offset, *threshold;
    const int32_t *rank, *parts;
    int64_t* counts;
    int64_t slots, rows, width;

    // 0 for slots outside the bank and those that are not resident at this site
    int64_t resident(int32_t slot) const { return slot > 0 && slot < slots && (parts[slot] & kResident) ? slot : 0; }

    Slot<Stored> at(int64_t slot) const {
        const int64_t row = slot * rows, wide = slot * width;
        return {scale + wide, shift + wide, read + row * width, write + row * width, bias + row, gain + row,
                offset + row, threshold + row, rank[slot], parts[slot]};
    }
};

// The rows that a token reads lie in two pieces of memory, `read` and then `write`; with those of the next token they
// make one sequence. Hardware does not see it, so the row kAhead places further on is fetched with every row.
constexpr int kAhead = 8;

template <typename Stored>
struct Rows {
    const Stored *read, *write, *next;
    int rank;
    int64_t width;

    // the row kAhead behind number i of the sequence, null where none is known
    const Stored* ahead(int i) const {
        i += kAhead;
        if (i < rank) return read + i * width;
        if (i < 2 * rank) return write + (i - rank) * width;
        return next && i < 3 * rank ? next + (i - 2 * rank) * width : nullptr;
    }
};

// fetches what lies at the place of elements j .. j + kVector of a row
template <typename Stored>
inline void fetch(const Stored* row, int64_t j) {
    if (row && (j * sizeof(Stored)) % 64 == 0) __builtin_prefetch(row + j, 0, 2);
}

// z[t] = <read, x[t]> for `n` tokens
template <typename Stored, int n>
inline void product(const Stored* read, const float* x, int64_t width, const Stored* ahead, float* z) {
    // one token has independent sums as well, else each addition would wait for the one before
    constexpr int apart = n == 1 ? 4 : 1;
    Vector sums[n * apart] = {};
    int64_t j = 0;
    for (; j + apart * kVector <= width; j += apart * kVector)
        for (int part = 0; part < apart; ++part) {
            const int64_t from = j + part * kVector;
            Vector row, value;
            load(read + from, &row);
            fetch(ahead, from);
            for (int t = 0; t < n; ++t) {
                load(x + t * width + from, &value);
                sums[t * apart + part] += row * value;
            }
        }
    for (int t = 0; t < n; ++t) {
        z[t] = 0.0f;
        for (int part = 0; part < apart; ++part) z[t] += sum_of(sums[t * apart + part]);
        for (int64_t rest = j; rest < width; ++rest) z[t] += widened(read[rest]) * x[t * width + rest];
    }
}

// moved[t] += amount[t] * write for `n` tokens
template <typename Stored, int n>
inline void add_row(const Stored* write, const float* amount, int64_t width, const Stored* ahead, float* moved) {
    int64_t j = 0;
    for (; j + kVector <= width; j += kVector) {
        Vector row, sum;
        load(write + j, &row);
        fetch(ahead, j);
        for (int t = 0; t < n; ++t) {
            load(moved + t * width + j, &sum);
            sum += amount[t] * row;
            std::memcpy(moved + t * width + j, &sum, sizeof sum);
        }
    }
    for (; j < width; ++j)
        for (int t = 0; t < n; ++t) moved[t * width + j] += amount[t] * widened(write[j]);
}

// o_i * (gain_i * a_i + offset_i) * strength in place of <read_i, x>
template <typename Stored>
inline void respond(const Slot<Stored>& slot, float strength, float* z, int stride) {
    bool fires[kMaxRank], any = false;
    for (int i = 0; i < slot.rank; ++i) {
        z[i * stride] += slot.bias[i];
        any |= fires[i] = z[i * stride] > slot.threshold[i];
    }
    for (int i = 0; i < slot.rank; ++i) {
        const bool gate = slot.parts & kAnyGate ? any : fires[i];
        const float activation = fires[i] ? z[i * stride] : 0.0f;
        z[i * stride] = gate ? strength * (slot.gain[i] * activation + slot.offset[i]) : 0.0f;
    }
}

// moved[t] = what one lane adds to x[t], for `n` tokens of one slot; rows at `next`, if any, are fetched meanwhile
template <typename Stored, int n>
void lane_delta(
    const Slot<Stored>& slot, const float* strength, const float* x, int64_t width, float* moved, const Stored* next) {
    for (int t = 0; t < n; ++t) {
        const float* value = x + t * width;
        float* to = moved + t * width;
        if (slot.parts & kAffine) {
#pragma omp simd
            for (int64_t j = 0; j < width; ++j)
                to[j] = strength[t] * (widened(slot.scale[j]) * value[j] + widened(slot.shift[j]));
        } else {
            std::memset(to, 0, size_t(width) * sizeof(float));
        }
    }
    const Rows<Stored> rows{slot.read, slot.write, next, slot.rank, width};
    float z[kMaxRank * n];
    for (int i = 0; i < slot.rank; ++i)
        product<Stored, n>(slot.read + i * width, x, width, rows.ahead(i), z + i * n);
    for (int t = 0; t < n; ++t) respond(slot, strength[t], z + t, n);
    for (int i = 0; i < slot.rank; ++i)
        add_row<Stored, n>(slot.write + i * width, z + i * n, width, rows.ahead(slot.rank + i), moved);
}

template <typename Hidden>
struct Stream {
    Hidden* hidden;
    const Hidden* residual;
    int64_t hidden_stride, residual_stride;
    const int32_t* lane;
    const float* strength;
    int64_t lane_stride, strength_stride;
};

// edits the tokens first .. first + n - 1, which are alike; `scratch`: [3, n, width]; `next`: the read rows of the token
// behind them
template <typename Hidden, typename Stored, int n>
void edit_tokens(
    const Stream<Hidden>& stream, const SiteBank<Stored>& bank, int64_t first, float* scratch,
    const Stored* next) {
    const int64_t width = bank.width;
    // the activation, what all lanes have made of `hidden` so far, what one lane adds
    float *value = scratch, *total = value + n * width, *moved = total + n * width;
    for (int t = 0; t < n; ++t) {
        const Hidden* from = stream.hidden + (first + t) * stream.hidden_stride;
        const Hidden* other = stream.residual ? stream.residual + (first + t) * stream.residual_stride : nullptr;
        float* to = value + t * width;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) to[j] = widened(from[j]);
        std::memcpy(total + t * width, to, size_t(width) * sizeof(float));
        if (other) {
#pragma omp simd
            for (int64_t j = 0; j < width; ++j) to[j] += widened(other[j]);
        }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t slot = bank.resident(stream.lane[lane * stream.lane_stride + first]);
        if (!slot) continue;
        const float* strength = stream.strength + lane * stream.strength_stride + first;
        lane_delta<Stored, n>(bank.at(slot), strength, value, width, moved, next);
        if (bank.parts[slot] & kKeepNorm)
            for (int t = 0; t < n; ++t) keep_norm(value + t * width, width, moved + t * width);
#pragma omp simd
        for (int64_t j = 0; j < n * width; ++j) {
            value[j] += moved[j];
            total[j] += moved[j];
        }
#pragma omp atomic
        bank.counts[slot] += n;
    }
    for (int t = 0; t < n; ++t) {
        Hidden* to = stream.hidden + (first + t) * stream.hidden_stride;
        for (int64_t j = 0; j < width; ++j) store(total[t * width + j], to + j);
    }
}

template <typename Hidden, typename Stored>
bool touched(const Stream<Hidden>& stream, const SiteBank<Stored>& bank, int64_t token) {
    for (int lane = 0; lane < kLanes; ++lane)
        if (bank.resident(stream.lane[lane * stream.lane_stride + token])) return true;
    return false;
}

// whether the slots of all lanes are the same in kTokens tokens
template <typename Hidden>
bool alike(const Stream<Hidden>& stream, int64_t first) {
    for (int lane = 0; lane < kLanes; ++lane) {
        const int32_t* slots = stream.lane + lane * stream.lane_stride + first;
        for (int t = 1; t < kTokens; ++t)
            if (slots[t] != slots[0]) return false;
    }
    return true;
}

template <typename Hidden, typename Stored>
void edit_step(const Stream<Hidden>& stream, const SiteBank<Stored>& bank, int64_t tokens, int threads) {
    const auto read_of = [&](int64_t token) -> const Stored* {
        const int64_t slot = token < tokens ? bank.resident(stream.lane[token]) : 0;
        return slot ? bank.at(slot).read : nullptr;
    };
#pragma omp parallel num_threads(threads)
    {
        const std::unique_ptr<float[]> scratch(new float[3 * kTokens * bank.width]);
#pragma omp for schedule(dynamic, 4)
        for (int64_t first = 0; first < tokens; first += kTokens) {
            if (first + kTokens <= tokens && alike(stream, first)) {
                if (touched(stream, bank, first))
                    edit_tokens<Hidden, Stored, kTokens>(stream, bank, first, scratch.get(), nullptr);
                continue;
            }
            for (int64_t token = first; token < first + kTokens && token < tokens; ++token)
                if (touched(stream, bank, token))
                    edit_tokens<Hidden, Stored, 1>(stream, bank, token, scratch.get(), read_of(token + 1));
        }
    }
}

struct Arguments {
    void* hidden;
    const void* residual;
    int64_t hidden_stride, residual_stride, tokens;
    const int32_t* lane;
    const float* strength;
    int64_t lane_stride, strength_stride;
    const int32_t* site;
    const void *scale, *shift, *read, *write;
    const float *bias, *gain, *offset, *threshold;
    const int32_t *rank, *parts;
    int64_t* counts;
    int64_t sites, slots, rows, width;
    int64_t hidden_is_bfloat16, bank_is_bfloat16, threads;
};

template <typename Hidden, typename Stored>
void run(const Arguments& given, int64_t site) {
    const Stream<Hidden> stream{
        static_cast<Hidden*>(given.hidden), static_cast<const Hidden*>(given.residual), given.hidden_stride,
        given.residual_stride, given.lane, given.strength, given.lane_stride, given.strength_stride,
    };
    const int64_t pair = site * given.slots, row = pair * given.rows, wide = pair * given.width;
    const auto part = [](const void* all, int64_t start) { return static_cast<const Stored*>(all) + start; };
    const SiteBank<Stored> bank{
        part(given.scale, wide), part(given.shift, wide), part(given.read, row * given.width),
        part(given.write, row * given.width), given.bias + row, given.gain + row, given.offset + row,
        given.threshold + row, given.rank + pair, given.parts + pair, given.counts + pair, given.slots, given.rows,
        given.width,
    };
    edit_step(stream, bank, given.tokens, int(given.threads));
}

}  // namespace

extern "C" void guard_edit(const Arguments* given) {
    const int64_t site = *given->site;
    if (site < 0 || site >= given->sites) return;
    if (given->hidden_is_bfloat16)
        given->bank_is_bfloat16 ? run<BFloat16, BFloat16>(*given, site) : run<BFloat16, float>(*given, site);
    else
        given->bank_is_bfloat16 ? run<float, BFloat16>(*given, site) : run<float, float>(*given, site);
}
