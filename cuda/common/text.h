// Text that goes out through the ABI.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

// Copies text with its NUL, cut to the capacity.
inline void write_text(uint8_t* out, int32_t capacity, const std::string& text) {
    const size_t size = std::min<size_t>(text.size(), capacity - 1);
    std::memcpy(out, text.data(), size);
    out[size] = 0;
}

// As a JSON string; control characters are left out.
inline std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        if (static_cast<unsigned char>(c) >= ' ') out += c;
    }
    return out + '"';
}
