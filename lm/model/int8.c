// y [M, N] = x [M, K] (float32) times weights of 8 bits, w [N, K], each output's row with a scale [N].
//
// A custom call of XLA's CPU backend, built by lm/model/int8.py. Threads take rows of w from one counter; a sum goes over
// K in an order of its own whatever the threads, M and the other rows are, so each row of x gets the same bits.
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/c_api.h"

enum { LANES = 16, TILE = 4, ROWS = 4, CHUNK = 32, SMALL = 1 << 16 };
typedef float floats __attribute__((vector_size(4 * LANES)));

typedef struct {
  const float *x, *scale;
  const int8_t *w;
  float *y;
  int64_t M, N, K;
  atomic_long next, done, users;  // first row of w not taken; rows that are done; threads that may still look
} Job;

static inline __attribute__((always_inline)) floats load_floats(const float *p, int64_t n) {
  floats v = {0};
  memcpy(&v, p, n < LANES ? 4 * n : sizeof v);
  return v;
}

static inline __attribute__((always_inline)) floats load_bytes(const int8_t *p, int64_t n) {
  int8_t v[LANES] = {0};
  floats converted;
  memcpy(v, p, n < LANES ? n : LANES);
#if defined(__AVX512F__)  // GCC 12 converts vectors of bytes one number at a time
  converted = (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)v)));
#elif defined(__AVX2__)
  for (int half = 0; half < 2; half++) {
    __m256 eight = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(v + 8 * half))));
    memcpy((char *)&converted + 32 * half, &eight, 32);
  }
#else
  for (int l = 0; l < LANES; l++) converted[l] = v[l];
#endif
  return converted;
}

static inline __attribute__((always_inline)) void step(floats sums[ROWS][TILE], const float *x, const int8_t *w,
                                                       int64_t K, int64_t n, int rows, int outs) {
  floats weights[TILE];
  for (int j = 0; j < outs; j++) weights[j] = load_bytes(w + j * K, n);
  for (int i = 0; i < rows; i++) {
    floats v = load_floats(x + i * K, n);
    for (int j = 0; j < outs; j++) sums[i][j] += v * weights[j];
  }
}

// `outs` outputs of `rows` rows of x, both constants where this is inlined.
static inline __attribute__((always_inline)) void block(const Job *job, int64_t row, int64_t out, int rows, int outs) {
  floats sums[ROWS][TILE] = {{{0}}};
  const float *x = job->x + row * job->K;
  const int8_t *w = job->w + out * job->K;
  int64_t k = 0;
  for (; k + LANES <= job->K; k += LANES) step(sums, x + k, w + k, job->K, LANES, rows, outs);
  if (k < job->K) step(sums, x + k, w + k, job->K, job->K - k, rows, outs);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < outs; j++) {
      float parts[LANES];
      memcpy(parts, &sums[i][j], sizeof parts);
      for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) parts[l] += parts[l + half];
      job->y[(row + i) * job->N + out + j] = parts[0] * job->scale[out + j];
    }
}

static void outputs(const Job *job, int64_t first, int64_t end) {
  for (int64_t out = first; out < end; out += TILE) {
    int whole = out + TILE <= end;
    int64_t row = 0;
    for (; whole && row + ROWS <= job->M; row += ROWS) block(job, row, out, ROWS, TILE);
    for (; row < job->M; row++) {
      if (whole) block(job, row, out, 1, TILE);
      else for (int64_t one = out; one < end; one++) block(job, row, one, 1, 1);
    }
  }
}

static void leave(Job *job) {
  if (atomic_fetch_sub(&job->users, 1) == 1) free(job);
}

static void work(void *data) {
  Job *job = data;
  for (long at; (at = atomic_fetch_add(&job->next, CHUNK)) < job->N;) {
    long end = at + CHUNK < job->N ? at + CHUNK : job->N;
    outputs(job, at, end);
    atomic_fetch_add(&job->done, end - at);
  }
  leave(job);
}

static void help(const XLA_FFI_CallFrame *frame, Job *job) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args count = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, 0, frame->ctx, &threads};
  if (frame->api->XLA_FFI_ThreadPool_NumThreads(&count)) return;
  for (int64_t i = 1; i < threads; i++) {
    XLA_FFI_ThreadPool_Schedule_Args task = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, 0, frame->ctx, work, job};
    atomic_fetch_add(&job->users, 1);
    if (frame->api->XLA_FFI_ThreadPool_Schedule(&task)) { leave(job); return; }
  }
}

XLA_FFI_Error *lm_int8_product(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Extension_Base *asked = frame->extension_start;
  if (asked && asked->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Api_Version *version = &((XLA_FFI_Metadata_Extension *)asked)->metadata->api_version;
    version->major_version = XLA_FFI_API_MAJOR, version->minor_version = XLA_FFI_API_MINOR;
    return 0;
  }
  XLA_FFI_Buffer *x = frame->args.args[0], *w = frame->args.args[1], *scale = frame->args.args[2];
  XLA_FFI_Buffer *y = frame->rets.rets[0];
  Job *job = malloc(sizeof *job);
  *job = (Job){x->data, scale->data, w->data, y->data, x->dims[0], w->dims[0], w->dims[1]};
  job->users = 2;  // this function, and its own work
  if (job->N * job->K >= SMALL) help(frame, job);
  work(job);
  while (atomic_load(&job->done) < job->N) sched_yield();
  leave(job);
  return 0;
}
