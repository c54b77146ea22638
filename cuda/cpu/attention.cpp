// Attention over the cache. A sequence is cut into chunks of 1024 positions, at the same places whatever else the call holds; a chunk of
// one KV head, for one row or for a few rows of the same slot, is a task (attention_chunk.h). Rows are put together from their chunks in order by
// log-sum-exp. So a row's bits depend neither on the threads nor on the other rows, with one exception: see `shared_rows`.
#include "attention.h"
#include "attention_chunk.h"
#include <omp.h>

namespace {

// Lookups (lookup.h) serve one row; from so many rows of one slot on it is faster to dequantize a page into L1 once for all of them. Both are
// within a few 1e-6 of the exact result, but their bits differ. Without lookups either way gives the same bits.
constexpr int shared_rows = 8;

// What each row sees; its slot, position and pages are checked. lowest as in attend.
int32_t read_rows(vi_context* context, const char* name, std::vector<Row>& out, const vi_kv_layer* layer, const int32_t* slots, const int32_t* positions,
                  const int32_t* lowest) {
    for (size_t r = 0; r < out.size(); r++) {
        if (positions[r] < 0) continue;
        const int slot = slots[r], end = positions[r] + 1;
        VI_CHECK(check_position(context, name, layer, static_cast<int>(r), slot, positions[r]));
        const int exact = std::max(end - layer->window, layer->exact_from[slot]);
        int begin = lowest ? lowest[r] : 0;
        if (layer->sliding()) begin = std::max(begin, exact); // the ring is all there is
        if (begin >= end) continue;
        const int exact_begin = std::max(begin, std::min(layer->sinks, end)), exact_end = std::max(exact_begin, std::min(end, exact));
        out[r] = {slot, begin, end, exact_begin, exact_end};
        if (exact_begin < exact_end)
            for (int page = exact_begin / page_tokens; page <= (exact_end - 1) / page_tokens; page++)
                VI_CHECK(check_page(context, name, layer, slot, std::max(exact_begin, page * page_tokens)));
    }
    return VI_OK;
}

// Rows that follow each other in one slot, some of them together. group: query heads of a KV head.
std::vector<Group> groups_of(const std::vector<Row>& rows, const vi_kv_layer* layer, int group) {
    std::vector<Group> groups;
    const bool tables = VI_LOOKUP && (layer->keys->bits <= 10 || layer->values->bits <= 10);
    const int count = static_cast<int>(rows.size());
    for (int first = 0; first < count;) {
        int last = first + 1;
        if (!rows[first].padding())
            while (last < count && !rows[last].padding() && rows[last].slot == rows[first].slot) last++;
        const int most = tables && last - first < shared_rows ? 1 : std::max(1, max_queries / group);
        for (int r = first; r < last; r += most) {
            Group g{r, std::min(most, last - r), rows[r].chunks()};
            for (int i = r; i < r + g.rows; i++) g.chunks = {std::min(g.chunks.begin, rows[i].chunks().begin), std::max(g.chunks.end, rows[i].chunks().end)};
            groups.push_back(g);
        }
        first = last;
    }
    return groups;
}

// Queries as Attention has them.
std::vector<float> transformed_queries(vi_context* context, const float* q, const std::vector<Group>& groups, const vi_kv_layer* layer, float factor, int rows,
                                       int heads, int64_t stride) {
    const int kv_heads = layer->kv_heads, dim = layer->head_dim, group = heads / kv_heads;
    std::vector<float> queries(int64_t(rows) * heads * dim);
#pragma omp parallel for collapse(2) num_threads(context->threads_for(int64_t(rows) * heads * layer->keys->transform->work()))
    for (size_t n = 0; n < groups.size(); n++)
        for (int head = 0; head < kv_heads; head++) {
            const Group& g = groups[n];
            for (int row = 0; row < g.rows && g.chunk_count(); row++) {
                float* to = queries.data() + (int64_t(g.first) * heads + (head * g.rows + row) * group) * dim;
                layer->keys->transform->apply(to, dim, q + (g.first + row) * stride + int64_t(head) * group * dim, dim, group, head, VI_TRANSFORM_QUERY);
                for (int d = 0; d < group * dim; d++) to[d] *= factor;
            }
        }
    return queries;
}

// The tasks of some groups, as many as keep the partial results within 64 MB, or one group's.
struct Slab {
    size_t begin, end; // of the groups
    std::vector<Task> tasks;
    std::vector<size_t> first_task; // of each group
    int64_t floats = 0, work = 0;

    Slab(const Attention& a, const std::vector<Group>& groups, size_t begin) : begin(begin), end(begin) {
        for (; end < groups.size() && (end == begin || floats < 16 << 20); end++) {
            const Group& g = groups[end];
            first_task.push_back(tasks.size());
            for (int head = 0; head < a.layer.kv_heads; head++)
                for (int c = g.chunks.begin; c < g.chunks.end; c++) {
                    tasks.push_back({static_cast<int>(end), head, c, floats});
                    floats += int64_t(g.rows) * a.group * (a.dim + 2);
                }
            for (int r = g.first; r < g.first + g.rows; r++) work += int64_t(a.rows[r].end - a.rows[r].begin) * a.heads * a.dim;
        }
    }
};

// Outputs and log-sums of a group's rows and one KV head from their chunks, which begin at `own`.
void merge_group(float* out, float* lse, const Attention& a, const float* results, const Task* own, const Group& g, int head) {
    for (int row = g.first; row < g.first + g.rows; row++) {
        const int64_t first = int64_t(row) * a.heads + head * a.group;
        const bool padding = a.rows[row].padding();
        const Range chunks = a.rows[row].chunks();
        const Task* const tasks = own + (chunks.begin - g.chunks.begin);
        float* to = out + first * a.dim;
        if (padding) std::fill_n(to, a.group * a.dim, 0.0f);
        for (int i = 0; i < a.group; i++) {
            const int query = (row - g.first) * a.group + i;
            const float sink = a.scoring.sink(head * a.group + i);
            const float log_sum = padding ? -infinity : a.merge(to + i * a.dim, results, tasks, chunks.end - chunks.begin, g.rows * a.group, query, sink);
            if (lse) lse[first + i] = log_sum;
        }
        if (!padding) a.layer.values->transform->apply(to, a.dim, to, a.dim, a.group, head, VI_TRANSFORM_INVERSE);
    }
}

} // namespace

int32_t attend(vi_context* context, const char* name, float* out, float* lse, const float* q, const vi_kv_layer* layer, const int32_t* slots,
               const int32_t* positions, const int32_t* lowest, const Scores& scores, int rows, int heads, int64_t stride) {
    const int kv_heads = layer->kv_heads, group = heads / kv_heads;
    std::vector<Row> seen(rows);
    VI_CHECK(read_rows(context, name, seen, layer, slots, positions, lowest));
    const std::vector<Group> groups = groups_of(seen, layer, group);
    const std::vector<float> queries = transformed_queries(context, q, groups, layer, scores.query_factor(), rows, heads, stride);
    const Attention attention{*layer, heads, group, layer->head_dim, queries.data(), seen.data(), scores};
    static thread_local std::vector<std::unique_ptr<Scratch>> scratch; // kept from call to call
    static thread_local std::vector<float> partials;
    while (static_cast<int>(scratch.size()) < context->threads) scratch.emplace_back(new Scratch);
    for (auto& s : scratch) s->tables_of = -1;
    std::unique_ptr<Scratch>* const scratches = scratch.data();

    for (size_t begin = 0; begin < groups.size();) {
        const Slab slab(attention, groups, begin);
        if (static_cast<int64_t>(partials.size()) < slab.floats) partials.resize(slab.floats);
        float* const results = partials.data();
        const int threads = context->threads_for(slab.work);
        // Tasks in a row mostly belong to one row and head, whose tables a thread then builds once.
        const int grain = std::max<int>(1, static_cast<int>(slab.tasks.size()) / (threads * 4));
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(dynamic, grain)
            for (size_t i = 0; i < slab.tasks.size(); i++) {
                const Task& task = slab.tasks[i];
                attention.run(*scratches[omp_get_thread_num()], results + task.partial, groups[task.group], task);
            }
#pragma omp for collapse(2) schedule(static)
            for (size_t n = slab.begin; n < slab.end; n++)
                for (int head = 0; head < kv_heads; head++)
                    merge_group(out, lse, attention, results, slab.tasks.data() + slab.first_task[n - slab.begin] + head * groups[n].chunk_count(), groups[n], head);
        }
        begin = slab.end;
    }
    return VI_OK;
}

extern "C" int32_t vi_attention(vi_context* context, float* out, const float* q, const vi_kv_layer* layer, const int32_t* slots, const int32_t* positions,
                                const float* sink_logits, float scale, float soft_cap, int32_t rows, int32_t heads, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_attention(context, __func__, out, q, shape_of(layer), slots, positions, soft_cap, rows, heads, stride));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_attention(context, out, q, layer, slots, positions, sink_logits, scale, soft_cap, rows, heads, stride));
    return attend(context, __func__, out, nullptr, q, layer, slots, positions, nullptr, {scale, soft_cap, sink_logits}, rows, heads, stride);
} VI_CATCH(context)
