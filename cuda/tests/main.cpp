// kernels_test [--cpu FILE] [--cuda FILE] [--seed N] [--small] [FILTER...]: runs the cases whose name contains one of the filters, or all.
// The libraries are looked for beside the program. Exits with 0 where no case failed, and where there is no device.
#include "test.h"
#include <algorithm>
#include <cstdarg>
#include <cstdlib>
#include <dlfcn.h>

std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

void fail(const char* format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof text, format, args);
    va_end(args);
    throw Failure{text};
}

void Library::open(const std::string& file) {
    path = file;
    void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        std::fprintf(stderr, "%s\n", dlerror());
        std::exit(2);
    }
#define X(name) name = reinterpret_cast<decltype(name)>(dlsym(handle, #name));
    VI_FUNCTIONS(X)
#undef X
}

void close(const char* name, const std::vector<float>& found, const std::vector<float>& wanted, double tolerance) {
    CHECK(found.size() == wanted.size(), "%s has %zu elements instead of %zu", name, found.size(), wanted.size());
    double error = 0, norm = 0;
    size_t finite = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
        if (!std::isfinite(wanted[i]) || !std::isfinite(found[i])) {
            const bool same = (std::isnan(wanted[i]) && std::isnan(found[i])) || wanted[i] == found[i];
            CHECK(same, "%s[%zu] of %zu is %g, on the CPU %g", name, i, wanted.size(), found[i], wanted[i]);
            continue;
        }
        ++finite;
        error += (double(found[i]) - wanted[i]) * (double(found[i]) - wanted[i]);
        norm += double(wanted[i]) * wanted[i];
    }
    const double relative = error == 0 ? 0 : std::sqrt(error / (norm > 0 ? norm : 1e-30));
    CHECK(relative <= tolerance, "%s: relative error %.3g, allowed %.3g", name, relative, tolerance);
    const double most = 20 * tolerance * std::sqrt(norm / std::max<size_t>(1, finite));
    for (size_t i = 0; i < wanted.size(); ++i) {
        if (!std::isfinite(wanted[i])) continue;
        const double difference = std::fabs(double(found[i]) - wanted[i]);
        CHECK(difference <= std::max(most, 20 * tolerance * std::fabs(wanted[i])), "%s[%zu] of %zu is %.9g, on the CPU %.9g", name, i,
            wanted.size(), found[i], wanted[i]);
    }
}

void Test::close(const char* name, const Array<float>& array, double tolerance) { ::close(name, array.read(cuda), array.read(cpu), tolerance); }

int main(int argc, char** argv) {
    const std::string program = argv[0];
    const std::string folder = program.find('/') == std::string::npos ? "." : program.substr(0, program.rfind('/'));
    std::string cpu_path = folder + "/libvecinfer_cpu.so", cuda_path = folder + "/libvecinfer_cuda.so";
    uint64_t seed = std::random_device()();
    bool small = false;
    std::vector<std::string> filters;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        if (word == "--cpu" && i + 1 < argc) cpu_path = argv[++i];
        else if (word == "--cuda" && i + 1 < argc) cuda_path = argv[++i];
        else if (word == "--seed" && i + 1 < argc) seed = std::strtoull(argv[++i], nullptr, 10);
        else if (word == "--small") small = true;
        else filters.push_back(word);
    }
    Library cpu, cuda;
    cpu.open(cpu_path);
    cuda.open(cuda_path);
    int32_t devices = 0;
    char reason[512] = {};
    if (cuda.vi_device_count(reinterpret_cast<uint8_t*>(&devices), reinterpret_cast<uint8_t*>(reason), sizeof reason) != VI_OK || devices == 0) {
        std::printf("skipped: %s\n0 passed, 0 failed\n", reason);
        return 0;
    }
    for (Library* library : {&cpu, &cuda}) {
        const int32_t status = library->vi_context_create(reinterpret_cast<uint8_t*>(&library->context), 0, 0);
        if (status != VI_OK) {
            std::printf("%s: status %d: %s\n", library->path.c_str(), status, library->error().c_str());
            return 1;
        }
    }
    char info[4096] = {};
    cuda.vi_device_info(cuda.context, reinterpret_cast<uint8_t*>(info), sizeof info);
    std::printf("%s\nseed %llu%s\n", info, static_cast<unsigned long long>(seed), small ? ", small" : "");
    int passed = 0, failed = 0, skipped = 0;
    for (const Case& one : cases()) {
        const auto matches = [&](const std::string& filter) { return std::string(one.name).find(filter) != std::string::npos; };
        if (!filters.empty() && std::none_of(filters.begin(), filters.end(), matches)) continue;
        try {
            Test test(cpu, cuda, small, seed ^ std::hash<std::string>()(one.name));
            one.run(test);
            ++passed;
            std::printf("ok      %s\n", one.name);
        } catch (const Failure& failure) {
            ++failed;
            std::printf("FAILED  %s: %s\n", one.name, failure.text.c_str());
        } catch (const Skip& skip) {
            ++skipped;
            std::printf("skipped %s: %s\n", one.name, skip.text.c_str());
        }
        std::fflush(stdout);
    }
    for (Library* library : {&cpu, &cuda}) library->vi_context_destroy(library->context);
    if (skipped) std::printf("%d skipped\n", skipped);
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}
