// The kernel's own source on a CPU: as a library for numpy, and as a program for the sanitizers.
#include "cuda_shim.h"

#include "preprocess.cu"

#include <cstdio>
#include <cstdlib>
#include <string>

extern "C" void run(const unsigned char* staging, void* batch, int images, int size, int half, int tile_rows,
                    const float* scale, const float* bias) {
    const dim3 grid{(size + COLUMNS - 1u) / COLUMNS, (size + tile_rows - 1u) / tile_rows, static_cast<unsigned>(images)};
    shim::launch(grid, 32 * WARPS, [=] {
        preprocess(staging, batch, size, half, tile_rows, scale[0], scale[1], scale[2], bias[0], bias[1], bias[2]);
    });
}

// preprocess STAGING OUTPUT IMAGES SIZE TILE_ROWS [SKIPPED_LINE]: buffers have exactly the sizes that a GPU would see.
int main(int count, char** arguments) {
    if (count < 6) return 2;
    const int images = std::atoi(arguments[3]), size = std::atoi(arguments[4]), tile_rows = std::atoi(arguments[5]);
    if (count > 6) shim::skipped_line = std::atoi(arguments[6]);
    std::FILE* file = std::fopen(arguments[1], "rb");
    if (!file) return 2;
    std::fseek(file, 0, SEEK_END);
    const long bytes = std::ftell(file);
    std::rewind(file);
    void* staging = nullptr;
    if (posix_memalign(&staging, 16, bytes) || std::fread(staging, 1, bytes, file) != static_cast<size_t>(bytes)) return 2;
    std::fclose(file);
    const size_t values = 3ul * images * size * size;
    float* batch = static_cast<float*>(std::malloc(values * sizeof(float)));
    const float scale[3] = {1, 1, 1}, bias[3] = {0, 0, 0};
    run(static_cast<unsigned char*>(staging), batch, images, size, 0, tile_rows, scale, bias);
    file = std::fopen(arguments[2], "wb");
    if (!file || std::fwrite(batch, sizeof(float), values, file) != values) return 2;
    std::fclose(file);
    std::free(batch);
    std::free(staging);
}
