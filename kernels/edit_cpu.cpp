// The edit formula of kernels/edit_formula.py for the tokens of one step at one site, on CPUs.
//
// Every edited token reads the rows of its own slot, so at many slots the time is that of reading the bank once. Tokens
// are taken four at a time: where all four have one slot, a row is read and widened once for the four.

#include <cstdint>
#include <cstring>
#include <memory>

namespace {

constexpr int kLanes = 4, kMaxRank = 32, kTokens = 4;
constexpr int32_t kResident = 1, kAffine = 2, kAnyGate = 4;

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

// rounds to nearest, ties to even; NaN stays NaN
inline void store(float x, BFloat16* to) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to->bits = uint16_t(x == x ? rounded : 0x7fc0);
}

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

// pulls a few rows of a matrix that is needed soon towards the core; hardware does not see that a slot follows
template <typename Stored>
inline void fetch(const Stored* rows, int64_t elements) {
    for (int64_t j = 0; j < elements; j += int64_t(64 / sizeof(Stored))) __builtin_prefetch(rows + j, 0, 2);
}

template <typename Stored>
inline float product(const Stored* read, const float* x, int64_t width) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; ++j) sum += widened(read[j]) * x[j];
    return sum;
}

// z[i] = <read[i], x[i]> for four pairs, i apart by `row` in read and by `token` in x: four independent sums
template <typename Stored>
inline void four_products(
    const Stored* read, int64_t row, const float* x, int64_t token, int64_t width, float* z) {
    float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
#pragma omp simd reduction(+ : a, b, c, d)
    for (int64_t j = 0; j < width; ++j) {
        a += widened(read[j]) * x[j];
        b += widened(read[row + j]) * x[token + j];
        c += widened(read[2 * row + j]) * x[2 * token + j];
        d += widened(read[3 * row + j]) * x[3 * token + j];
    }
    z[0] = a, z[1] = b, z[2] = c, z[3] = d;
}

// z[i][t] = <read_i, x[t]>; a row of `write`, needed next, is fetched with each row of `read`
template <typename Stored, int n>
inline void all_products(const Slot<Stored>& slot, const float* x, int64_t width, float* z) {
    int i = 0;
    if (n == 1)
        for (; i + 4 <= slot.rank; i += 4) {
            four_products(slot.read + i * width, width, x, 0, width, z + i);
            fetch(slot.write + i * width, 4 * width);
        }
    for (; i < slot.rank; ++i) {
        if (n == kTokens)
            four_products(slot.read + i * width, 0, x, width, width, z + i * n);
        else
            z[i] = product(slot.read + i * width, x, width);
        fetch(slot.write + i * width, width);
    }
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

// moved[t] += sum of `rows` rows of `write`, weighted by amount[i][t]
template <typename Stored, int n, int rows>
inline void add_rows(const Stored* write, const float* amount, int64_t width, float* moved) {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j)
        for (int t = 0; t < n; ++t) {
            float sum = 0.0f;
            for (int i = 0; i < rows; ++i) sum += amount[i * n + t] * widened(write[i * width + j]);
            moved[t * width + j] += sum;
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
    float z[kMaxRank * n];
    all_products<Stored, n>(slot, x, width, z);
    for (int t = 0; t < n; ++t) respond(slot, strength[t], z + t, n);
    int i = 0;
    for (; i + 4 <= slot.rank; i += 4) {
        add_rows<Stored, n, 4>(slot.write + i * width, z + i * n, width, moved);
        if (next) fetch(next + i * width, 4 * width);
    }
    for (; i < slot.rank; ++i) add_rows<Stored, n, 1>(slot.write + i * width, z + i * n, width, moved);
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
