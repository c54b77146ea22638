// Recorded steps and events. A graph is the list of its calls; an event is the wall clock.
#include "context.h"
#include <chrono>
#include <memory>

extern "C" {

int32_t vi_event_record(vi_context* context, int32_t index) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_event(context, __func__, index));
    VI_RECORD(context, vi_event_record(context, index));
    context->events[index] = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    return VI_OK;
} VI_CATCH(context)

int32_t vi_event_elapsed(vi_context* context, uint8_t* out, int32_t first, int32_t last) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_POINTER(context, __func__, out);
    for (const int32_t index : {first, last}) {
        VI_CHECK(check_event(context, __func__, index));
        VI_REQUIRE(context, context->events[index] != 0, "%s: event %d was never recorded", __func__, index);
    }
    const float milliseconds = static_cast<float>((context->events[last] - context->events[first]) * 1e3);
    std::memcpy(out, &milliseconds, sizeof milliseconds);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_graph_begin(vi_context* context) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    context->recorded = std::make_unique<vi_graph>();
    context->recording = true;
    context->recording_status = VI_OK;
    return VI_OK;
} VI_CATCH(context)

int32_t vi_graph_end(vi_context* context, uint8_t* out) VI_TRY {
    VI_OPEN(context);
    VI_REQUIRE(context, context->recording, "%s: no recording, call vi_graph_begin first", __func__);
    std::unique_ptr<vi_graph> graph = std::move(context->recorded);
    context->recording = false;
    VI_POINTER(context, __func__, out);
    if (context->recording_status != VI_OK) {
        context->error = context->recording_error;
        return context->recording_status;
    }
    const vi_graph* handle = graph.release();
    std::memcpy(out, &handle, sizeof handle);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_graph_launch(vi_context* context, vi_graph* graph) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_POINTER(context, __func__, graph);
    for (const auto& call : graph->calls)
        if (const int32_t status = call(); status != VI_OK) return status;
    return VI_OK;
} VI_CATCH(context)

int32_t vi_graph_destroy(vi_context* context, vi_graph* graph) {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    delete graph;
    return VI_OK;
}

} // extern "C"
