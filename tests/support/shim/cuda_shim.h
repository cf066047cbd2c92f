// CUDA as far as preprocess.cu speaks it, in C++: one operating-system thread for each CUDA thread, blocks one by one.
#pragma once
#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static  // one block runs at a time, and all its threads see the same
#define __syncthreads() shim::barrier(__LINE__)

struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };

using std::max;
using std::min;

// The compiler is told not to fuse these (-ffp-contract=off).
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }

inline unsigned short half_bits(float value) {
#ifdef __aarch64__
    const __fp16 half = static_cast<__fp16>(value);
#else
    const _Float16 half = static_cast<_Float16>(value);
#endif
    unsigned short bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

inline thread_local dim3 threadIdx, blockIdx, blockDim;

namespace shim {

inline int skipped_line = 0;  // the barrier that is left out, to see whether its absence is found
inline pthread_barrier_t all;

inline void barrier(int line) {
    if (line != skipped_line) pthread_barrier_wait(&all);
}

template <typename Kernel>
void launch(dim3 grid, unsigned threads, Kernel kernel) {
    pthread_barrier_init(&all, nullptr, threads);
    std::vector<std::thread> running;
    for (unsigned thread = 0; thread < threads; ++thread) {
        running.emplace_back([=] {
            threadIdx = {thread, 0, 0};
            blockDim = {threads, 1, 1};
            for (unsigned z = 0; z < grid.z; ++z)
                for (unsigned y = 0; y < grid.y; ++y)
                    for (unsigned x = 0; x < grid.x; ++x) {
                        blockIdx = {x, y, z};
                        kernel();
                        pthread_barrier_wait(&all);  // the next block has the same shared memory
                    }
        });
    }
    for (std::thread& thread : running) thread.join();
    pthread_barrier_destroy(&all);
}

}  // namespace shim
