// A libcuda.so.1 without a GPU, to see that the real bindings are called as they want it: memory is the host's, work is
// done at once or recorded, and the one kernel it knows is preprocess.cu itself.
#include "cuda_shim.h"

#include "preprocess.cu"

#include <dlfcn.h>

#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace {

using Work = std::function<void()>;
enum Status { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500 };
struct Stream { bool recording = false; std::vector<Work> recorded; };

std::map<unsigned long long, size_t> memory;
thread_local int depth = 0;

int put(void* handle, Work work) {
    Stream* stream = static_cast<Stream*>(handle);
    if (!depth || !stream) return INVALID_CONTEXT;
    if (stream->recording) stream->recorded.push_back(work);
    else work();
    return SUCCESS;
}

int allocate(unsigned long long* address, size_t size) {
    if (!depth) return INVALID_CONTEXT;
    if (size > 1ul << 30) return OUT_OF_MEMORY;
    void* place = nullptr;
    if (posix_memalign(&place, 256, size)) return OUT_OF_MEMORY;
    memory[*address = reinterpret_cast<unsigned long long>(place)] = size;
    return SUCCESS;
}

int release(unsigned long long address) {
    if (!memory.erase(address)) return INVALID_VALUE;
    std::free(reinterpret_cast<void*>(address));
    return SUCCESS;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int* version) { *version = 13010; return SUCCESS; }
int cuGetErrorName(int, const char** name) { *name = "CUDA_ERROR"; return SUCCESS; }
int cuDeviceGetCount(int* count) { *count = 1; return SUCCESS; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal ? INVALID_VALUE : SUCCESS; }
// As the real one, which leaves what lies behind the end of the name as it was.
int cuDeviceGetName(char* name, int, int) { std::strcpy(name, "Fake GPU"); return SUCCESS; }
int cuDeviceTotalMem(size_t* bytes, int) { *bytes = 8ul << 30; return SUCCESS; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    const std::map<int, int> known = {{75, 8}, {76, 7}, {16, 4}, {18, 1}};  // as numbered in cuda.h
    if (!known.count(attribute)) return INVALID_VALUE;
    *value = known.at(attribute);
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** context, int) { *context = &memory; return SUCCESS; }
int cuDevicePrimaryCtxRelease(int) { return memory.empty() ? SUCCESS : INVALID_VALUE; }
int cuCtxPushCurrent(void* context) { ++depth; return context == &memory ? SUCCESS : INVALID_CONTEXT; }
int cuCtxPopCurrent(void** context) { *context = &memory; return depth-- > 0 ? SUCCESS : INVALID_CONTEXT; }

int cuMemAlloc(unsigned long long* address, size_t size) { return allocate(address, size); }
int cuMemFree(unsigned long long address) { return release(address); }
int cuMemHostAlloc(void** address, size_t size, unsigned flags) {
    return flags == 3 ? allocate(reinterpret_cast<unsigned long long*>(address), size) : INVALID_VALUE;
}
int cuMemHostGetDevicePointer(unsigned long long* there, void* here, unsigned) {
    *there = reinterpret_cast<unsigned long long>(here);
    return SUCCESS;
}
int cuMemFreeHost(void* address) { return release(reinterpret_cast<unsigned long long>(address)); }
int cuMemcpyHtoDAsync(unsigned long long to, const void* from, size_t size, void* stream) {
    return put(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, size); });
}
int cuMemcpyDtoHAsync(void* to, unsigned long long from, size_t size, void* stream) {
    return put(stream, [=] { std::memcpy(to, reinterpret_cast<void*>(from), size); });
}

int cuStreamCreate(void** stream, unsigned flags) { *stream = new Stream; return flags == 1 ? SUCCESS : INVALID_VALUE; }
int cuStreamDestroy(void* stream) { delete static_cast<Stream*>(stream); return SUCCESS; }
int cuStreamSynchronize(void* stream) { return static_cast<Stream*>(stream)->recording ? 900 : SUCCESS; }
int cuStreamBeginCapture(void* stream, int mode) {
    static_cast<Stream*>(stream)->recording = true;
    return mode == 1 ? SUCCESS : INVALID_VALUE;
}
int cuStreamEndCapture(void* handle, void** graph) {
    Stream* stream = static_cast<Stream*>(handle);
    if (!stream->recording) return INVALID_VALUE;
    *graph = new std::vector<Work>(std::move(stream->recorded));
    *stream = Stream();
    return SUCCESS;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = new std::vector<Work>(*static_cast<std::vector<Work>*>(graph));
    return SUCCESS;
}
int cuGraphDestroy(void* graph) { delete static_cast<std::vector<Work>*>(graph); return SUCCESS; }
int cuGraphExecDestroy(void* graph) { return cuGraphDestroy(graph); }
int cuGraphLaunch(void* graph, void* stream) {
    for (const Work& work : *static_cast<std::vector<Work>*>(graph)) put(stream, work);
    return SUCCESS;
}

int cuModuleLoadData(void** module, const void* image) {
    unsigned magic;
    std::memcpy(&magic, image, 4);
    *module = new int;
    return magic == 0xba55ed50 || magic == 0x464c457f ? SUCCESS : INVALID_IMAGE;  // a fatbin or an ELF file
}
int cuModuleUnload(void* module) { delete static_cast<int*>(module); return SUCCESS; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
    *function = module;
    return std::string(name) == "preprocess" ? SUCCESS : NOT_FOUND;
}
int cuLaunchKernel(void*, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned shared,
                   void* stream, void** arguments, void** extra) {
    if (shared || extra || threads != 32 * WARPS) return INVALID_VALUE;
    const auto staging = *static_cast<const unsigned char**>(arguments[0]);
    const auto batch = *static_cast<void**>(arguments[1]);
    std::vector<int> numbers;
    std::vector<float> affine;
    for (int i = 2; i < 5; ++i) numbers.push_back(*static_cast<int*>(arguments[i]));
    for (int i = 5; i < 11; ++i) affine.push_back(*static_cast<float*>(arguments[i]));
    return put(stream, [=] {
        shim::launch(dim3{x, y, z}, threads, [=] {
            preprocess(staging, batch, numbers[0], numbers[1], numbers[2], affine[0], affine[1], affine[2], affine[3],
                       affine[4], affine[5]);
        });
    });
}

int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status) {
    *function = std::string(name) == "cuGetProcAddress" ? reinterpret_cast<void*>(&cuGetProcAddress_v2)
                                                         : dlsym(RTLD_DEFAULT, name);
    if (!*function) {
        void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
        *function = dlsym(self, name);
    }
    if (status) *status = *function ? 0 : 1;
    return SUCCESS;
}

}  // extern "C"
