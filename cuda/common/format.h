// The formats of a side: name, channels of a sub-vector, bits of a code. This list is the only one: check, message, indices, launchers and kernels of both libraries
// are made from it. A format more is a line here and kernels/attention_<name>.cu, without which the CUDA library does not link; where a layout has code for some
// sizes only, a static_assert stands beside it.
#pragma once
#include <initializer_list>

#define VI_FORMATS(X) X(bf16, 1, 16) X(d2b8, 2, 8) X(d4b12, 4, 12) X(d4b10, 4, 10) X(d4b8, 4, 8) X(d4b6, 4, 6) X(d8b12, 8, 12) X(d8b8, 8, 8)

struct FormatSize {
    int sub_dim, bits;
};
#define VI_FORMAT_SIZE(name, d, b) {d, b},
constexpr FormatSize formats[] = {VI_FORMATS(VI_FORMAT_SIZE)};

// A format's place in the list: format_d4b8, ...; and their number.
#define VI_FORMAT_INDEX(name, d, b) format_##name,
enum FormatIndex { VI_FORMATS(VI_FORMAT_INDEX) format_count };

// The same of a size; -1 where there is none.
constexpr int format_index(int sub_dim, int bits) {
    for (int i = 0; i < format_count; ++i)
        if (formats[i].sub_dim == sub_dim && formats[i].bits == bits) return i;
    return -1;
}

// "bf16 (1,16), d2b8 (2,8), ...", for messages.
#define VI_FORMAT_TEXT(name, d, b) ", " #name " (" #d "," #b ")"
constexpr const char* format_text = &(VI_FORMATS(VI_FORMAT_TEXT))[2];

// For static_asserts where code is written for these sizes alone; bf16 is not asked.
constexpr bool formats_have(std::initializer_list<int> sub_dims, std::initializer_list<int> bits) {
    const auto among = [](int x, std::initializer_list<int> list) {
        for (const int known : list)
            if (known == x) return true;
        return false;
    };
    for (const FormatSize& format : formats)
        if (format.bits < 16 && !(among(format.sub_dim, sub_dims) && among(format.bits, bits))) return false;
    return true;
}
