// What a step of decoding reads: matrices for a few rows, and the keys and values of a cache; and attention of many
// queries, forward and backward.
//
// Custom calls of XLA's CPU backend, built by lm/model/native.py. Threads take tasks from one counter. Every sum has an
// order of its own, whatever the threads and the other rows are, so each row gets the same bits in any company.
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/c_api.h"

// Numbers of a register (GCC keeps a wider vector in memory), and the rows and vectors of outputs that are summed at a
// time: as many as there are registers for.
#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8, VECTORS = 3 };
#elif defined(__AVX2__)
enum { LANES = 8, ROWS = 4, VECTORS = 3 };
#elif defined(__aarch64__)
enum { LANES = 4, ROWS = 8, VECTORS = 3 };
#else
enum { LANES = 4, ROWS = 4, VECTORS = 3 };
#endif
enum { SHALLOW = 16, DEPTH = 64, WIDEST = 1024, OUTPUTS = 48, MOST = 8, SMALL = 1 << 15 };
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef float four __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
enum Kind { FLOAT, BFLOAT, BYTES };
#define INLINE static inline __attribute__((always_inline))

typedef struct {
  const char *w;
  const float *scale;
  float *y;
  int64_t N, tasks;
} Matrix;

// Products: y [M, N] = x [M, K] times each of `count` matrices, [K, N] or by_output [N, K].
typedef struct {
  const float *x;
  int64_t M, K, chunk;  // outputs of a task
  int count, by_output;
  enum Kind kind;
  Matrix matrices[MOST];
} Products;

// Attention: y [B, K, G, T, V] of queries q [B, K, G, T, H] to the keys k [B, K, S, H] and values v [B, K, S, V] that
// `allowed` [B, T, S] names; of many queries that has one row for all of a batch, or none where all are allowed.
// `log_total` [B, K, G, T], where it is wanted: the logarithm of the sum of a query's exponentials, -INFINITY of none.
typedef struct {
  const float *q, *k, *v;
  const uint8_t *allowed;
  float *y, *log_total;
  int64_t K, G, T, S, H, V, rows;
} Attention;

// Its gradients dq, dk and dv by `dy`, the gradient of y. Each of `parts` of the keys has dq [parts, B, K, G, T, H] of
// its own, which are then added to the first.
typedef struct {
  Attention of;
  const float *dy;
  float *dq, *dk, *dv;
  int64_t parts, numbers;  // of one dq
} Gradients;

typedef struct Job {
  void (*task)(const struct Job *, long);
  int64_t tasks;
  union {
    Products products;
    Attention attention;
    Gradients gradients;
  };
  atomic_long next, done;
} Job;

// ------------------------------------------------------------------ numbers, `n` of them

INLINE int64_t size_of(enum Kind kind) { return kind == FLOAT ? 4 : kind == BFLOAT ? 2 : 1; }

INLINE floats load_floats(const char *p, int64_t n) {
  floats v = {0};
  memcpy(&v, p, n < LANES ? 4 * n : sizeof v);
  return v;
}

INLINE floats load_bfloats(const char *p, int64_t n) {
  uint16_t v[LANES] = {0};
  words wide;
  memcpy(v, p, n < LANES ? 2 * n : sizeof v);
#if defined(__AVX512F__)
  wide = (words)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)v)), 16);
#elif defined(__AVX2__)
  wide = (words)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)v)), 16);
#else
  for (int l = 0; l < LANES; l++) wide[l] = (uint32_t)v[l] << 16;
#endif
  return (floats)wide;
}

INLINE floats load_bytes(const char *p, int64_t n) {
  int8_t v[LANES] = {0};
  floats converted;
  memcpy(v, p, n < LANES ? n : LANES);
#if defined(__AVX512F__)  // GCC 12 converts vectors of bytes one number at a time
  converted = (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)v)));
#elif defined(__AVX2__)
  converted = (floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)v)));
#else
  for (int l = 0; l < LANES; l++) converted[l] = v[l];
#endif
  return converted;
}

INLINE floats load(enum Kind kind, const char *p, int64_t n) {
  return kind == FLOAT ? load_floats(p, n) : kind == BFLOAT ? load_bfloats(p, n) : load_bytes(p, n);
}

INLINE float sum(floats v) {
  four parts[LANES / 4];
  memcpy(parts, &v, sizeof v);
  for (int n = LANES / 8; n; n /= 2)
    for (int i = 0; i < n; i++) parts[i] += parts[i + n];
  return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

// ------------------------------------------------------------------ [K, N]: a few rows of w at a time, added to y

// `vectors` of outputs, the last with `n` numbers, for `rows` rows of x; kind, rows and vectors are constants. The next
// tile is prefetched meanwhile, a share by each of the groups of rows.
INLINE void tile(const Products *job, const Matrix *m, int64_t row, int64_t k, int64_t out, int64_t depth, int64_t n,
                 enum Kind kind, int rows, int vectors) {
  floats sums[ROWS][VECTORS], w[VECTORS];
  float *y = m->y + row * m->N + out;
  const float *x = job->x + row * job->K + k;
  const char *from = m->w + size_of(kind) * (k * m->N + out);
  int64_t groups = (job->M + ROWS - 1) / ROWS, fetched = job->M > 1 ? row / ROWS : depth;
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < vectors; j++)
      sums[i][j] = k ? load_floats((char *)(y + i * m->N + j * LANES), n) : (floats){0};
  for (int64_t d = 0; d < depth; d++, from += size_of(kind) * m->N) {
    for (int j = 0; j < vectors; j++) w[j] = load(kind, from + size_of(kind) * j * LANES, n);
    if (d == fetched) {
      for (int j = 0; j < vectors; j++) __builtin_prefetch(from + size_of(kind) * (vectors + j) * LANES);
      fetched += groups;
    }
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < vectors; j++) sums[i][j] += x[i * job->K + d] * w[j];
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < vectors; j++) memcpy(y + i * m->N + j * LANES, &sums[i][j], n < LANES ? 4 * n : 4 * LANES);
}

INLINE void tiles(const Products *job, const Matrix *m, int64_t k, int64_t out, int64_t depth, int64_t n,
                  enum Kind kind, int vectors) {
  int64_t row = 0;
  for (; row + ROWS <= job->M; row += ROWS) tile(job, m, row, k, out, depth, n, kind, ROWS, vectors);
  for (; row + 2 <= job->M; row += 2) tile(job, m, row, k, out, depth, n, kind, 2, vectors);
  if (row < job->M) tile(job, m, row, k, out, depth, n, kind, 1, vectors);
}

INLINE void slab(const Products *job, const Matrix *m, int64_t first, int64_t end, int64_t k, int64_t depth,
                 enum Kind kind) {
  int64_t out = first;
  for (; out + VECTORS * LANES <= end; out += VECTORS * LANES) tiles(job, m, k, out, depth, LANES, kind, VECTORS);
  for (; out + LANES <= end; out += LANES) tiles(job, m, k, out, depth, LANES, kind, 1);
  if (out < end) tiles(job, m, k, out, depth, end - out, kind, 1);
}

INLINE void columns(const Products *job, const Matrix *m, int64_t first, int64_t end, enum Kind kind) {
  int64_t depth = job->M < ROWS ? SHALLOW : DEPTH;
  for (int64_t k = 0; k < job->K; k += depth)
    slab(job, m, first, end, k, k + depth < job->K ? depth : job->K - k, kind);
}

// ------------------------------------------------------------------ [N, K]: a sum at a time

INLINE void step(floats sums[ROWS][VECTORS], const float *x, const char *w, int64_t K, int64_t n, enum Kind kind,
                 int rows, int outs) {
  floats weights[VECTORS];
  for (int j = 0; j < outs; j++) weights[j] = load(kind, w + size_of(kind) * j * K, n);
  for (int i = 0; i < rows; i++) {
    floats v = load_floats((const char *)(x + i * K), n);
    for (int j = 0; j < outs; j++) sums[i][j] += v * weights[j];
  }
}

INLINE void block(const Products *job, const Matrix *m, int64_t row, int64_t out, enum Kind kind, int rows, int outs) {
  floats sums[ROWS][VECTORS], all[ROWS][VECTORS];
  const float *x = job->x + row * job->K;
  const char *w = m->w + size_of(kind) * out * job->K;
  int64_t k = 0;
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < outs; j++) sums[i][j] = (floats){0};
  for (; k + LANES <= job->K; k += LANES) {
    if (row == 0)  // the next block's
      for (int j = 0; j < outs; j++) __builtin_prefetch(w + size_of(kind) * (k + (outs + j) * job->K));
    step(sums, x + k, w + size_of(kind) * k, job->K, LANES, kind, rows, outs);
  }
  memcpy(all, sums, sizeof all);
  __asm__ volatile("" : : "r"(all) : "memory");  // what follows calls functions: until here sums stay in registers
  if (k < job->K) step(all, x + k, w + size_of(kind) * k, job->K, job->K - k, kind, rows, outs);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < outs; j++) {
      float y = sum(all[i][j]);
      m->y[(row + i) * m->N + out + j] = kind == BYTES ? y * m->scale[out + j] : y;
    }
}

INLINE void blocks(const Products *job, const Matrix *m, int64_t first, int64_t end, int64_t row, enum Kind kind,
                   int rows) {
  int64_t out = first;
  for (; out + VECTORS <= end; out += VECTORS) block(job, m, row, out, kind, rows, VECTORS);
  for (; out < end; out++) block(job, m, row, out, kind, rows, 1);
}

INLINE void outputs(const Products *job, const Matrix *m, int64_t first, int64_t end, enum Kind kind) {
  int64_t row = 0;
  for (; row + ROWS <= job->M; row += ROWS) blocks(job, m, first, end, row, kind, ROWS);
  for (; row + 2 <= job->M; row += 2) blocks(job, m, first, end, row, kind, 2);
  if (row < job->M) blocks(job, m, first, end, row, kind, 1);
}

// ------------------------------------------------------------------ the task of a product: some outputs of a matrix

static void product(const Job *of, long at) {
  const Products *job = &of->products;
  const Matrix *m = job->matrices;
  for (; at >= m->tasks; m++) at -= m->tasks;
  int64_t first = at * job->chunk, end = first + job->chunk < m->N ? first + job->chunk : m->N;
  if (job->by_output) {
    if (job->kind == FLOAT) outputs(job, m, first, end, FLOAT);
    else if (job->kind == BFLOAT) outputs(job, m, first, end, BFLOAT);
    else outputs(job, m, first, end, BYTES);
  } else if (job->kind == FLOAT) columns(job, m, first, end, FLOAT);
  else columns(job, m, first, end, BFLOAT);
}

// ------------------------------------------------------------------ the task of attention: queries of a head of keys

// Keys and queries at a time; the most vectors of a head.
enum { BLOCK = 64, QUERIES = 64, WIDTH = 1024 / LANES };

// e^x for x <= 0, within two units in the last place; 0 below -87, NaN for NaN.
INLINE floats exponential(floats x) {
  floats turns = x * 1.44269504f + 12582912.f;  // 2^23 * 1.5: rounds to a whole number, in the lowest bits
  words whole = (words)turns << 23;
  turns -= 12582912.f;
  floats r = x - turns * 0.693359375f + turns * 2.12194440e-4f;
  floats y = 1.9875691500e-4f * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1;
  words bits = (words)y + whole;
  return (floats)(bits & ~(words)(x <= -87.f));
}

// Logits of one query q [H] to `count` keys, -INFINITY where it may not look; returns the largest.
INLINE float score(const Attention *job, const float *q, const float *k, const uint8_t *allowed, int64_t count,
                   float *logits) {
  float most = -INFINITY;
  for (int64_t s = 0; s < count; s++) {
    if (!allowed[s]) { logits[s] = -INFINITY; continue; }
    floats sums = {0};
    int64_t h = 0;
    for (; h + LANES <= job->H; h += LANES)
      sums += load_floats((const char *)(q + h), LANES) * load_floats((const char *)(k + s * job->H + h), LANES);
    int64_t n = job->H - h;
    if (n > 0) sums += load_floats((const char *)(q + h), n) * load_floats((const char *)(k + s * job->H + h), n);
    logits[s] = sum(sums);
    if (logits[s] > most) most = logits[s];
  }
  for (int64_t s = count; s < BLOCK; s++) logits[s] = -INFINITY;
  return most;
}

// A running softmax (2112.05682): what one query has of the keys so far.
typedef struct {
  float most, total;
  floats out[WIDTH];
} Running;

INLINE void add(const Attention *job, Running *have, const float *v, const float *logits, float most, int64_t count) {
  int64_t vectors = (job->V + LANES - 1) / LANES;
  float weights[BLOCK];
  floats total = {0};
  if (most > have->most) {
    float shrink = expf(have->most - most);
    have->most = most, have->total *= shrink;
    for (int64_t j = 0; j < vectors; j++) have->out[j] *= shrink;
  }
  for (int s = 0; s < BLOCK; s += LANES) {
    floats w = exponential(load_floats((const char *)(logits + s), LANES) - have->most);
    memcpy(weights + s, &w, sizeof w);
    total += w;
  }
  have->total += sum(total);
  for (int64_t j = 0; j < vectors; j++) {
    int64_t n = job->V - j * LANES;
    floats out = have->out[j];
    const char *from = (const char *)(v + j * LANES);  // of a key without weight not even what is no number
    for (int64_t s = 0; s < count; s++, from += 4 * job->V)
      if (weights[s] != 0) out += weights[s] * (n >= LANES ? load_floats(from, LANES) : load_floats(from, n));
    have->out[j] = out;
  }
}

static void attention(const Job *of, long at) {
  const Attention *job = &of->attention;
  int64_t parts = (job->G * job->T + QUERIES - 1) / QUERIES, head = at / parts, row = head / job->K;
  int64_t first = head * job->G * job->T + at % parts * QUERIES, last = (head + 1) * job->G * job->T;
  int64_t queries = last - first < QUERIES ? last - first : QUERIES;
  const float *k = job->k + head * job->S * job->H, *v = job->v + head * job->S * job->V;
  Running have[QUERIES];
  float logits[BLOCK];
  for (int64_t i = 0; i < queries; i++) {
    have[i].most = -INFINITY, have[i].total = 0;
    for (int j = 0; j < WIDTH && j * LANES < job->V; j++) have[i].out[j] = (floats){0};
  }
  for (int64_t s = 0; s < job->S; s += BLOCK) {
    int64_t count = job->S - s < BLOCK ? job->S - s : BLOCK;
    for (int64_t i = 0; i < queries; i++) {
      const uint8_t *allowed = job->allowed + (row * job->T + (first + i) % job->T) * job->S + s;
      if (!memchr(allowed, 1, count)) continue;  // would add zeros
      float most = score(job, job->q + (first + i) * job->H, k + s * job->H, allowed, count, logits);
      add(job, have + i, v + s * job->V, logits, most, count);
    }
  }
  for (int64_t i = 0; i < queries; i++) {
    float *y = job->y + (first + i) * job->V, share = have[i].total > 0 ? 1 / have[i].total : 0;
    for (int64_t j = 0; j * LANES < job->V; j++) {
      floats out = have[i].out[j] * share;
      int64_t n = job->V - j * LANES;
      memcpy(y + j * LANES, &out, n < LANES ? 4 * n : 4 * LANES);
    }
  }
}

// ------------------------------------------------------------------ the same for many queries: products of tiles

// Queries and keys of a tile (whole vectors for each register size); queries up to which there are none (native.py).
enum { TALL = 128, KEYS = 96, TOKENS = 32 };

INLINE int64_t whole(int64_t numbers) { return (numbers + LANES - 1) / LANES * LANES; }

// y [rows, vectors * LANES] (+)= x [rows, depth] w [depth, ..]; rows and vectors are constants.
INLINE void corner(const float *x, int64_t x_row, int64_t x_step, const float *w, float *y, int64_t row, int64_t depth,
                   int more, int rows, int vectors) {
  floats sums[ROWS][VECTORS], own[VECTORS];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < vectors; j++)
      sums[i][j] = more ? load_floats((char *)(y + i * row + j * LANES), LANES) : (floats){0};
  for (int64_t d = 0; d < depth; d++) {
    for (int j = 0; j < vectors; j++) own[j] = load_floats((char *)(w + d * row + j * LANES), LANES);
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < vectors; j++) sums[i][j] += x[i * x_row + d * x_step] * own[j];
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < vectors; j++) memcpy(y + i * row + j * LANES, &sums[i][j], sizeof sums[i][j]);
}

// y [M, row] (+)= x [M, depth] w [depth, row], where rows of x are `x_row` apart and its columns `x_step`, and `row` is
// whole vectors.
INLINE void small_product(const float *x, int64_t x_row, int64_t x_step, const float *w, float *y, int64_t row,
                          int64_t M, int64_t depth, int more) {
  int64_t out = 0;
  for (; out + VECTORS * LANES <= row; out += VECTORS * LANES) {
    int64_t i = 0;
    for (; i + ROWS <= M; i += ROWS)
      corner(x + i * x_row, x_row, x_step, w + out, y + i * row + out, row, depth, more, ROWS, VECTORS);
    for (; i < M; i++) corner(x + i * x_row, x_row, x_step, w + out, y + i * row + out, row, depth, more, 1, VECTORS);
  }
  for (; out < row; out += LANES) {
    int64_t i = 0;
    for (; i + ROWS <= M; i += ROWS)
      corner(x + i * x_row, x_row, x_step, w + out, y + i * row + out, row, depth, more, ROWS, 1);
    for (; i < M; i++) corner(x + i * x_row, x_row, x_step, w + out, y + i * row + out, row, depth, more, 1, 1);
  }
}

// Logits [KEYS] of a query to weights, against the largest so far, by which what it has is shrunk.
INLINE void soften(float *logits, const uint8_t *allowed, int64_t count, float *most, floats *total, float *out,
                   int64_t row) {
  floats high;
  if (count < KEYS || (allowed && memchr(allowed, 0, count)))
    for (int64_t s = 0; s < KEYS; s++)
      if (s >= count || (allowed && !allowed[s])) logits[s] = -INFINITY;
  memcpy(&high, logits, sizeof high);
  for (int s = LANES; s < KEYS; s += LANES) {
    floats next = load_floats((char *)(logits + s), LANES);
    words larger = (words)(high > next);
    high = (floats)(((words)high & larger) | ((words)next & ~larger));
  }
  float higher = *most;
  for (int l = 0; l < LANES; l++) higher = high[l] > higher ? high[l] : higher;
  if (higher == -INFINITY) { memset(logits, 0, 4 * KEYS); return; }  // it has seen nothing yet
  if (higher > *most) {
    float shrink = expf(*most - higher);
    *most = higher, *total *= shrink;
    for (int64_t j = 0; j < row; j++) out[j] *= shrink;
  }
  for (int s = 0; s < KEYS; s += LANES) {
    floats w = exponential(load_floats((char *)(logits + s), LANES) - higher);
    memcpy(logits + s, &w, sizeof w);
    *total += w;
  }
}

// Rows of a tile, from `first` to before `end`: whole ROWS, or the last ones.
typedef struct {
  int64_t first, end;
} Range;

// The queries that may look at one of `count` keys, among so many from `begin` on; and the keys that are `seen`.
static Range look(const Attention *job, const uint8_t *allowed, int64_t begin, int64_t queries, int64_t count,
                  uint8_t *seen) {
  Range range = {queries, 0};
  memset(seen, !job->rows, count);
  if (!job->rows) return (Range){0, queries};
  for (int64_t i = 0; i < queries; i++) {
    const uint8_t *own = allowed + (begin + i) % job->T * job->S;
    if (!memchr(own, 1, count)) continue;
    if (range.first > i) range.first = i / ROWS * ROWS;
    range.end = (i / ROWS + 1) * ROWS;
    for (int64_t n = 0; n < count; n++) seen[n] |= own[n];
  }
  if (range.end > queries) range.end = queries;
  return range;
}

static void tiled(const Job *of, long at) {
  const Attention *job = &of->attention;
  int64_t parts = (job->G * job->T + TALL - 1) / TALL, head = at / parts, row = whole(job->V);
  int64_t begin = at % parts * TALL, left = job->G * job->T - begin, queries = left < TALL ? left : TALL;
  const float *q = job->q + (head * job->G * job->T + begin) * job->H;
  const uint8_t *allowed = job->allowed + (job->rows > 1 ? head / job->K : 0) * job->T * job->S;
  int64_t wide = KEYS * (job->H + row);  // numbers of a block of keys and its values
  float *keys = aligned_alloc(64, 4 * (wide + TALL * (KEYS + row)));  // a thread's stack may be small
  float *values = keys + KEYS * job->H, *logits = keys + wide, *out = logits + TALL * KEYS, most[TALL];
  floats total[TALL];
  uint8_t seen[KEYS];
  memset(out, 0, 4 * TALL * row);
  for (int i = 0; i < TALL; i++) most[i] = -INFINITY, total[i] = (floats){0};
  for (int64_t s = 0; s < job->S; s += KEYS) {
    int64_t count = job->S - s < KEYS ? job->S - s : KEYS;
    Range in = look(job, allowed + s, begin, queries, count, seen);
    if (in.first >= in.end) continue;
    const float *k = job->k + (head * job->S + s) * job->H, *v = job->v + (head * job->S + s) * job->V;
    memset(keys, 0, 4 * wide);
    for (int64_t n = 0; n < count; n++) {
      if (!seen[n]) continue;  // not even what is no number
      for (int64_t h = 0; h < job->H; h++) keys[h * KEYS + n] = k[n * job->H + h];
      memcpy(values + n * row, v + n * job->V, 4 * job->V);
    }
    small_product(q + in.first * job->H, job->H, 1, keys, logits, KEYS, in.end - in.first, job->H, 0);
    for (int64_t i = in.first; i < in.end; i++) {
      const uint8_t *own = job->rows ? allowed + (begin + i) % job->T * job->S + s : 0;
      soften(logits + (i - in.first) * KEYS, own, count, most + i, total + i, out + i * row, row);
    }
    small_product(logits, KEYS, 1, values, out + in.first * row, row, in.end - in.first, KEYS, 1);
  }
  float *y = job->y + (head * job->G * job->T + begin) * job->V;
  for (int64_t i = 0; i < queries; i++) {
    float all = sum(total[i]), share = all > 0 ? 1 / all : 0;
    for (int64_t j = 0; j < job->V; j++) y[i * job->V + j] = out[i * row + j] * share;
    if (job->log_total) job->log_total[head * job->G * job->T + begin + i] = most[i] + logf(all);
  }
  free(keys);
}

// ------------------------------------------------------------------ its gradients: a part of a head's keys is one task

enum { SHORT = 64, PART = 8 * KEYS };  // queries of a tile, keys of a task

// x [count, width] as [rows, whole(width)]; zeros where it has no row or a row is not `seen` (0: all are).
static void pad(const float *x, int64_t count, int64_t width, const uint8_t *seen, float *padded, int64_t rows) {
  memset(padded, 0, 4 * rows * whole(width));
  for (int64_t n = 0; n < count; n++)
    if (!seen || seen[n]) memcpy(padded + n * whole(width), x + n * width, 4 * width);
}

// x [count, width] as [width, KEYS], likewise.
static void turn(const float *x, int64_t count, int64_t width, const uint8_t *seen, float *turned) {
  memset(turned, 0, 4 * KEYS * width);
  for (int64_t n = 0; n < count; n++)
    for (int64_t j = 0; seen[n] && j < width; j++) turned[j * KEYS + n] = x[n * width + j];
}

// Logits [KEYS] of a query to probabilities, and the gradients of these to those of logits.
INLINE void soften_back(float *p, float *dp, const uint8_t *allowed, int64_t count, float log_total, float along) {
  if (count < KEYS || (allowed && memchr(allowed, 0, count)))
    for (int64_t s = 0; s < KEYS; s++)
      if (s >= count || (allowed && !allowed[s])) p[s] = -INFINITY;
  if (log_total == -INFINITY) log_total = 0;
  for (int s = 0; s < KEYS; s += LANES) {
    floats probability = exponential(load_floats((char *)(p + s), LANES) - log_total);
    words none = (words)(probability == 0.f);  // of a key without weight not even what is no number
    floats back = probability * (load_floats((char *)(dp + s), LANES) - along);
    back = (floats)((words)back & ~none);
    memcpy(p + s, &probability, sizeof probability);
    memcpy(dp + s, &back, sizeof back);
  }
}

static void backward(const Job *of, long at) {
  const Gradients *job = &of->gradients;
  const Attention *a = &job->of;
  int64_t head = at / job->parts, begin = at % job->parts * PART, end = begin + PART < a->S ? begin + PART : a->S;
  int64_t H = a->H, V = a->V, N = a->G * a->T, h = whole(H), v = whole(V);
  const uint8_t *allowed = a->allowed + (a->rows > 1 ? head / a->K : 0) * a->T * a->S;
  const float *log_total = a->log_total + head * N, *y = a->y + head * N * V, *given = job->dy + head * N * V;
  int64_t tile = SHORT * KEYS;
  float *q = aligned_alloc(64, 4 * (N * (2 * h + v) + KEYS * (2 * h + v + H + V) + 2 * tile + whole(N)));
  float *dq = q + N * h, *dy = dq + N * h, *keys = dy + N * v, *dk = keys + KEYS * h, *dv = dk + KEYS * h;
  float *turned_keys = dv + KEYS * v, *turned_values = turned_keys + KEYS * H;
  float *p = turned_values + KEYS * V, *dp = p + tile, *along = dp + tile;
  uint8_t seen[KEYS];
  pad(a->q + head * N * H, N, H, 0, q, N);
  pad(given, N, V, 0, dy, N);
  memset(dq, 0, 4 * N * h);
  for (int64_t i = 0; i < N; i++) {
    floats sums = {0};
    for (int64_t j = 0; j < V; j += LANES)
      sums += load_floats((char *)(dy + i * v + j), LANES) * load_floats((char *)(y + i * V + j), V - j);
    along[i] = sum(sums);
  }
  for (int64_t s = begin; s < end; s += KEYS) {
    int64_t count = end - s < KEYS ? end - s : KEYS, first = head * a->S + s;
    memset(dk, 0, 4 * KEYS * h);
    memset(dv, 0, 4 * KEYS * v);
    look(a, allowed + s, 0, a->T, count, seen);
    pad(a->k + first * H, count, H, seen, keys, KEYS);
    turn(a->k + first * H, count, H, seen, turned_keys);
    turn(a->v + first * V, count, V, seen, turned_values);
    for (int64_t from = 0; from < N; from += SHORT) {
      Range in = look(a, allowed + s, from, N - from < SHORT ? N - from : SHORT, count, seen);
      int64_t i = from + in.first, queries = in.end - in.first;
      if (queries <= 0) continue;
      small_product(q + i * h, h, 1, turned_keys, p, KEYS, queries, H, 0);
      small_product(dy + i * v, v, 1, turned_values, dp, KEYS, queries, V, 0);
      for (int64_t t = 0; t < queries; t++) {
        const uint8_t *own = a->rows ? allowed + (i + t) % a->T * a->S + s : 0;
        soften_back(p + t * KEYS, dp + t * KEYS, own, count, log_total[i + t], along[i + t]);
      }
      small_product(p, 1, KEYS, dy + i * v, dv, v, count, queries, 1);
      small_product(dp, 1, KEYS, q + i * h, dk, h, count, queries, 1);
      small_product(dp, KEYS, 1, keys, dq + i * h, h, queries, KEYS, 1);
    }
    for (int64_t n = 0; n < count; n++) {
      memcpy(job->dk + (first + n) * H, dk + n * h, 4 * H);
      memcpy(job->dv + (first + n) * V, dv + n * v, 4 * V);
    }
  }
  float *own = job->dq + at % job->parts * job->numbers + head * N * H;
  for (int64_t i = 0; i < N; i++) memcpy(own + i * H, dq + i * h, 4 * H);
  free(q);
}

// ------------------------------------------------------------------ threads

static void work(Job *job) {
  for (long at; (at = atomic_fetch_add(&job->next, 1)) < job->tasks;) {
    job->task(job, at);
    atomic_fetch_add(&job->done, 1);
  }
}

// Helpers look for the next product for a while before they sleep: in a token's step it comes within microseconds, and
// to wake a thread takes longer than a small product does.
enum { LOOKS = 2000, PAUSES = 16 };
static Job shared;                     // one product at a time has helpers
static atomic_long opened, inside;     // number of the product that is open (0: none); helpers that may read `shared`
static atomic_int sleepers;
static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER, bed = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t bell = PTHREAD_COND_INITIALIZER;
static long products, helpers;         // of the owner

static void pause_a_little(void) {
#if defined(__AVX2__)
  for (int i = 0; i < PAUSES; i++) _mm_pause();
#endif
  sched_yield();
}

static long next_product(long seen) {
  for (int looks = 0;; looks++) {
    long now = atomic_load(&opened);
    if (now && now != seen) return now;
    if (looks < LOOKS) { pause_a_little(); continue; }
    pthread_mutex_lock(&bed);
    atomic_fetch_add(&sleepers, 1);
    while ((now = atomic_load(&opened)) == 0 || now == seen) pthread_cond_wait(&bell, &bed);
    atomic_fetch_sub(&sleepers, 1);
    pthread_mutex_unlock(&bed);
    return now;
  }
}

static void *help(void *nothing) {
  for (long seen = 0;;) {
    seen = next_product(seen);
    atomic_fetch_add(&inside, 1);
    if (atomic_load(&opened) == seen) work(&shared);
    atomic_fetch_sub(&inside, 1);
  }
  return nothing;
}

static void hire(const XLA_FFI_CallFrame *frame) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args count = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, 0, frame->ctx, &threads};
  if (frame->api->XLA_FFI_ThreadPool_NumThreads(&count)) return;
  for (pthread_t one; helpers < threads - 1; helpers++) {
    if (pthread_create(&one, 0, help, 0)) return;
    pthread_detach(one);
  }
}

static void together(const XLA_FFI_CallFrame *frame, const Job *job) {
  hire(frame);
  memcpy(&shared, job, sizeof shared);
  atomic_store(&opened, ++products);
  if (atomic_load(&sleepers)) {
    pthread_mutex_lock(&bed);
    pthread_cond_broadcast(&bell);
    pthread_mutex_unlock(&bed);
  }
  work(&shared);
  while (atomic_load(&shared.done) < shared.tasks) sched_yield();
  atomic_store(&opened, 0);
  while (atomic_load(&inside)) sched_yield();
}

static void run(const XLA_FFI_CallFrame *frame, Job *job, int64_t size) {
  if (size >= SMALL && job->tasks > 1 && pthread_mutex_trylock(&owner) == 0) {
    together(frame, job);
    pthread_mutex_unlock(&owner);
  } else work(job);
}

// ------------------------------------------------------------------ XLA's calls

// Whether it was only asked for its version, which it then has told.
static int told_version(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Extension_Base *asked = frame->extension_start;
  if (!asked || asked->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Api_Version *version = &((XLA_FFI_Metadata_Extension *)asked)->metadata->api_version;
  version->major_version = XLA_FFI_API_MAJOR, version->minor_version = XLA_FFI_API_MINOR;
  return 1;
}

// Arguments: x, the matrices, for those of 8 bits their scales.
static XLA_FFI_Error *multiply(XLA_FFI_CallFrame *frame, int by_output) {
  if (told_version(frame)) return 0;
  XLA_FFI_Buffer **args = (XLA_FFI_Buffer **)frame->args.args, **rets = (XLA_FFI_Buffer **)frame->rets.rets;
  Job job = {.task = product};
  Products *p = &job.products;
  p->x = args[0]->data, p->M = args[0]->dims[0], p->K = args[0]->dims[1];
  p->count = frame->rets.size, p->by_output = by_output;
  p->kind = args[1]->dtype == XLA_FFI_DataType_S8 ? BYTES : args[1]->dtype == XLA_FFI_DataType_BF16 ? BFLOAT : FLOAT;
  int64_t all = 0;
  for (int i = 0; i < p->count; i++) {
    const float *scale = p->kind == BYTES ? args[1 + p->count + i]->data : 0;
    p->matrices[i] = (Matrix){args[1 + i]->data, scale, rets[i]->data, rets[i]->dims[1], 0};
    all += rets[i]->dims[1];
  }
  p->chunk = OUTPUTS;
  if (!by_output) {  // a share for each thread, of whole tiles
    int64_t unit = VECTORS * LANES, share = all / (helpers + 1) / unit * unit;
    p->chunk = share < unit ? unit : share > WIDEST ? WIDEST : share;
  }
  for (int i = 0; i < p->count; i++)
    job.tasks += p->matrices[i].tasks = (p->matrices[i].N + p->chunk - 1) / p->chunk;
  run(frame, &job, all * p->K);
  return 0;
}

XLA_FFI_Error *lm_by_input(XLA_FFI_CallFrame *frame) { return multiply(frame, 0); }
XLA_FFI_Error *lm_by_output(XLA_FFI_CallFrame *frame) { return multiply(frame, 1); }

// Arguments: q, k, v, allowed. Results: y, and where gradients are wanted, log_total.
XLA_FFI_Error *lm_attention(XLA_FFI_CallFrame *frame) {
  if (told_version(frame)) return 0;
  XLA_FFI_Buffer **args = (XLA_FFI_Buffer **)frame->args.args, **rets = (XLA_FFI_Buffer **)frame->rets.rets;
  const int64_t *q = args[0]->dims, *v = args[2]->dims;
  int many = q[3] > TOKENS || frame->rets.size > 1;
  int64_t own = many ? TALL : QUERIES;
  Job job = {.task = many ? tiled : attention, .tasks = q[0] * q[1] * ((q[2] * q[3] + own - 1) / own)};
  job.attention = (Attention){args[0]->data, args[1]->data, args[2]->data, args[3]->data, rets[0]->data,
                              frame->rets.size > 1 ? rets[1]->data : 0,
                              q[1], q[2], q[3], v[2], q[4], v[3], args[3]->dims[0]};
  run(frame, &job, q[0] * q[1] * v[2] * (q[4] + v[3]));
  return 0;
}

// Arguments: q, k, v, allowed, y, log_total, dy. Results: dq, dk, dv.
XLA_FFI_Error *lm_attention_gradients(XLA_FFI_CallFrame *frame) {
  if (told_version(frame)) return 0;
  XLA_FFI_Buffer **args = (XLA_FFI_Buffer **)frame->args.args, **rets = (XLA_FFI_Buffer **)frame->rets.rets;
  const int64_t *q = args[0]->dims, *v = args[2]->dims;
  int64_t parts = (v[2] + PART - 1) / PART, numbers = q[0] * q[1] * q[2] * q[3] * q[4];
  float *dq = rets[0]->data, *all = parts > 1 ? malloc(4 * parts * numbers) : dq;
  Job job = {.task = backward, .tasks = q[0] * q[1] * parts};
  job.gradients.of = (Attention){args[0]->data, args[1]->data, args[2]->data, args[3]->data, args[4]->data,
                                 args[5]->data, q[1], q[2], q[3], v[2], q[4], v[3], args[3]->dims[0]};
  job.gradients.dy = args[6]->data, job.gradients.parts = parts, job.gradients.numbers = numbers;
  job.gradients.dq = all, job.gradients.dk = rets[1]->data, job.gradients.dv = rets[2]->data;
  run(frame, &job, q[0] * q[1] * v[2] * (q[4] + v[3]));
  if (parts == 1) return 0;
  memcpy(dq, all, 4 * numbers);
  for (int64_t part = 1; part < parts; part++)
    for (int64_t i = 0; i < numbers; i++) dq[i] += all[part * numbers + i];
  free(all);
  return 0;
}
