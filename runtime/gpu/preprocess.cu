// From packed RGB pixels to the network's input in one launch: Pillow's antialiased resize, normalise, HWC to CHW, half.
//
// Pillow resizes in two passes, across and then down, with weights in fixed point (22 bits), and rounds to 8 bits after
// each. The sums here are the same integers, so the result is the same to the bit. Sums of integers may be cut anywhere:
// a tile walks over its part of the source in steps of a fixed size, and no image is too large for it.
//
// One block makes COLUMNS x tile_rows outputs of one image; a step takes ROWS source rows:
//   load    strip[row][pixel]    16 bytes a lane, 8 lanes a row: whole 128-byte lines, and no bank is hit twice
//   across  shrunk[row][column]  a lane is a source row, a warp an output column: weights are one broadcast for the warp
//   down    sums[row][channel]   a lane is an output column, a warp an output row, the sums stay in registers
// A source row is read by one tile alone, but for the overlap of neighbours: as many rows as the filter is wide.
//
// Nothing is included, so NVRTC needs no path; without CUDA the tests compile it as C++ behind a shim.

#ifndef WARPS
#define WARPS 8
#endif

namespace {

#ifdef __CUDACC__
__device__ __forceinline__ unsigned short half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

constexpr int COLUMNS = 32;
constexpr int MAX_TILE_ROWS = 32;
constexpr int ROWS = 32;                  // one lane each
constexpr int SPAN = 192;                 // source pixels of a row held at once: 1080p at 224 needs 163
constexpr int STRIP = SPAN * 3 / 4 + 1;   // words from row to row; odd, so that 32 rows lie in 32 banks
constexpr int SHRUNK = COLUMNS + 1;       // the same
constexpr int BITS = 22;                  // Pillow's PRECISION_BITS for 8-bit channels
static_assert(SPAN % 16 == 0, "16 pixels are where units of 4 pixels and vectors of 16 bytes meet");
static_assert(COLUMNS % WARPS == 0, "every warp takes as many columns");

// One image in the staging buffer, written by runtime/staging.py; offsets in bytes from the buffer's start.
struct Image {
    long long pixels, pitch;                // pitch: bytes from row to row
    long long x_bounds, x_weights;          // for each output column {first, count}; its weights, from first & ~3 on
    long long y_bounds, y_weights;
    int width, height;
    int x_stride, y_stride;                 // weights from output to output, a multiple of 4, zero beyond count
};

__device__ __forceinline__ int clipped(int sum) {
    const int value = sum >> BITS;
    return value < 0 ? 0 : (value > 255 ? 255 : value);
}

__device__ __forceinline__ void add(int (&sums)[3], int weight, unsigned red, unsigned green, unsigned blue) {
    sums[0] += weight * static_cast<int>(red & 255);
    sums[1] += weight * static_cast<int>(green & 255);
    sums[2] += weight * static_cast<int>(blue & 255);
}

// `columns` pixels of `rows` rows into the strip. Unaligned images take the second branch: slower, and as right.
__device__ __forceinline__ void load(unsigned* strip, const unsigned char* source, long long pitch, int rows, int columns,
                                     int lane, int warp) {
    const int bytes = 3 * columns;
    const bool aligned = ((reinterpret_cast<unsigned long long>(source) | pitch) & 15) == 0;
    for (int row = 4 * warp + lane / 8; row < rows; row += 4 * WARPS) {
        const unsigned char* from = source + row * pitch;
        unsigned* to = strip + row * STRIP;
        if (aligned) {
            const uint4* vectors = reinterpret_cast<const uint4*>(from);
#pragma unroll
            for (int step = 0; step < (SPAN * 3 + 127) / 128; ++step) {
                const int i = 8 * step + lane % 8;
                if (16 * i < bytes) {
                    const uint4 vector = vectors[i];
                    to[4 * i] = vector.x;
                    to[4 * i + 1] = vector.y;
                    to[4 * i + 2] = vector.z;
                    to[4 * i + 3] = vector.w;
                }
            }
        } else {
            for (int i = lane % 8; 4 * i < bytes; i += 8) {
                unsigned word = 0;
                for (int byte = 0; byte < 4 && 4 * i + byte < bytes; ++byte) {
                    word |= static_cast<unsigned>(from[4 * i + byte]) << 8 * byte;
                }
                to[i] = word;
            }
        }
    }
}

}  // namespace

// Grid {size / COLUMNS, size / tile_rows, images} rounded up, block {32 * WARPS}. `batch` is [images, 3, size, size] in
// half where `half` is not 0, else in float. Short tiles (tile_rows 8) spread one image over the whole GPU, tall ones (32)
// read fewer rows twice, for when a batch fills it anyway. 3 blocks an SM: unasked, ptxas takes 64 registers and spills.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 3)
    preprocess(const unsigned char* __restrict__ staging, void* __restrict__ batch, int size, int half, int tile_rows,
               float scale_r, float scale_g, float scale_b, float bias_r, float bias_g, float bias_b) {
    __shared__ unsigned strip[ROWS * STRIP];
    __shared__ unsigned shrunk[ROWS * SHRUNK];
    const Image image = reinterpret_cast<const Image*>(staging)[blockIdx.z];
    const int2* __restrict__ x_bounds = reinterpret_cast<const int2*>(staging + image.x_bounds);
    const int2* __restrict__ y_bounds = reinterpret_cast<const int2*>(staging + image.y_bounds);
    const int* __restrict__ x_weights = reinterpret_cast<const int*>(staging + image.x_weights);
    const int* __restrict__ y_weights = reinterpret_cast<const int*>(staging + image.y_weights);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int x0 = blockIdx.x * COLUMNS, x1 = min(x0 + COLUMNS, size);
    const int y0 = blockIdx.y * tile_rows, y1 = min(y0 + tile_rows, size);
    const int2 right = x_bounds[x1 - 1], bottom = y_bounds[y1 - 1];
    const int column_begin = x_bounds[x0].x & ~15, column_end = right.x + right.y;
    const int row_begin = y_bounds[y0].x, row_end = bottom.x + bottom.y;

    int down[MAX_TILE_ROWS / WARPS][3];
#pragma unroll
    for (auto& sums : down) sums[0] = sums[1] = sums[2] = 1 << (BITS - 1);

    for (int row = row_begin; row < row_end; row += ROWS) {
        const int rows = min(ROWS, row_end - row);
        int across[COLUMNS / WARPS][3];
#pragma unroll
        for (auto& sums : across) sums[0] = sums[1] = sums[2] = 1 << (BITS - 1);

        for (int column = column_begin; column < column_end; column += SPAN) {
            if (column != column_begin) __syncthreads();  // all have read the strip
            load(strip, staging + image.pixels + row * image.pitch + 3LL * column, image.pitch, rows,
                 min(SPAN, column_end - column), lane, warp);
            __syncthreads();  // the strip is whole, and all have read shrunk
            if (lane >= rows) continue;
#pragma unroll
            for (int j = 0; j < COLUMNS / WARPS; ++j) {
                const int x = x0 + warp + WARPS * j;
                if (x >= x1) continue;
                const int2 bounds = x_bounds[x];
                // In units of 4 pixels, 3 words: bytes RGBR GBRG BRGB.
                const int first = max(bounds.x >> 2, column >> 2);
                const int last = min((bounds.x + bounds.y + 3) >> 2, (column + SPAN) >> 2);
                const int4* weights = reinterpret_cast<const int4*>(x_weights + static_cast<long long>(x) * image.x_stride);
#pragma unroll 2
                for (int unit = first; unit < last; ++unit) {
                    const int4 weight = weights[unit - (bounds.x >> 2)];
                    const unsigned* words = strip + lane * STRIP + 3 * (unit - (column >> 2));
                    const unsigned a = words[0], b = words[1], c = words[2];
                    add(across[j], weight.x, a, a >> 8, a >> 16);
                    add(across[j], weight.y, a >> 24, b, b >> 8);
                    add(across[j], weight.z, b >> 16, b >> 24, c);
                    add(across[j], weight.w, c >> 8, c >> 16, c >> 24);
                }
            }
        }
        if (lane < rows) {
#pragma unroll
            for (int j = 0; j < COLUMNS / WARPS; ++j) {
                shrunk[lane * SHRUNK + warp + WARPS * j] =
                    clipped(across[j][0]) | clipped(across[j][1]) << 8 | clipped(across[j][2]) << 16;
            }
        }
        __syncthreads();  // shrunk is whole, and all have read the strip
#pragma unroll
        for (int j = 0; j < MAX_TILE_ROWS / WARPS; ++j) {
            const int y = y0 + warp + WARPS * j;
            if (y >= y1) continue;
            const int2 bounds = y_bounds[y];
            const int first = max(bounds.x, row), last = min(bounds.x + bounds.y, row + rows);
            const int* weights = y_weights + static_cast<long long>(y) * image.y_stride;
#pragma unroll 4
            for (int r = first; r < last; ++r) {
                const unsigned pixel = shrunk[(r - row) * SHRUNK + lane];
                add(down[j], weights[r - (bounds.x & ~3)], pixel, pixel >> 8, pixel >> 16);
            }
        }
    }

    const int x = x0 + lane;
    if (x >= x1) return;
#pragma unroll
    for (int j = 0; j < MAX_TILE_ROWS / WARPS; ++j) {
        const int y = y0 + warp + WARPS * j;
        if (y >= y1) continue;
        const float scale[3] = {scale_r, scale_g, scale_b}, bias[3] = {bias_r, bias_g, bias_b};
#pragma unroll
        for (int channel = 0; channel < 3; ++channel) {
            // Rounded twice, as numpy does: a fused multiply-add would differ in the last bit.
            const float value = static_cast<float>(clipped(down[j][channel]));
            const float normal = __fadd_rn(__fmul_rn(value, scale[channel]), bias[channel]);
            const long long place = ((blockIdx.z * 3LL + channel) * size + y) * size + x;
            if (half) {
                static_cast<unsigned short*>(batch)[place] = half_bits(normal);
            } else {
                static_cast<float*>(batch)[place] = normal;
            }
        }
    }
}
