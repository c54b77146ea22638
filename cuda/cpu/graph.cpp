// Recorded steps and events. A graph is the list of its calls; an event is the wall clock.
#include "context.h"
#include <chrono>
#include <memory>

extern "C" {

int32_t vi_event_record(vi_context* context, int32_t index) {
    VI_CONTEXT(context);
    VI_TRY {
        VI_REQUIRE(context, index >= 0 && index < 64, "vi_event_record: index is %d, not in 0..63", index);
        VI_RECORD(context, vi_event_record(context, index));
        context->events[index] = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
        return VI_OK;
    }
    VI_CATCH(context, "vi_event_record")
}

int32_t vi_event_elapsed(vi_context* context, uint8_t* out, int32_t first, int32_t last) {
    VI_NOT_RECORDED(context, "vi_event_elapsed");
    VI_TRY {
        VI_POINTER(context, "vi_event_elapsed", out);
        for (const int32_t index : {first, last}) {
            VI_REQUIRE(context, index >= 0 && index < 64, "vi_event_elapsed: event is %d, not in 0..63", index);
            VI_REQUIRE(context, context->events[index] != 0, "vi_event_elapsed: event %d was never recorded", index);
        }
        const float milliseconds = static_cast<float>((context->events[last] - context->events[first]) * 1e3);
        std::memcpy(out, &milliseconds, sizeof milliseconds);
        return VI_OK;
    }
    VI_CATCH(context, "vi_event_elapsed")
}

int32_t vi_graph_begin(vi_context* context) {
    VI_NOT_RECORDED(context, "vi_graph_begin");
    VI_TRY {
        context->recording = new vi_graph;
        context->recording_status = VI_OK;
        return VI_OK;
    }
    VI_CATCH(context, "vi_graph_begin")
}

int32_t vi_graph_end(vi_context* context, uint8_t* out) {
    VI_CONTEXT(context);
    VI_TRY {
        VI_REQUIRE(context, context->recording, "vi_graph_end: no recording, call vi_graph_begin first");
        std::unique_ptr<vi_graph> graph(context->recording);
        context->recording = nullptr;
        VI_POINTER(context, "vi_graph_end", out);
        if (context->recording_status != VI_OK) {
            context->error = context->recording_error;
            return context->recording_status;
        }
        const vi_graph* handle = graph.release();
        std::memcpy(out, &handle, sizeof handle);
        return VI_OK;
    }
    VI_CATCH(context, "vi_graph_end")
}

int32_t vi_graph_launch(vi_context* context, vi_graph* graph) {
    VI_NOT_RECORDED(context, "vi_graph_launch");
    VI_TRY {
        VI_POINTER(context, "vi_graph_launch", graph);
        for (const auto& call : graph->calls)
            if (const int32_t status = call(); status != VI_OK) return status;
        return VI_OK;
    }
    VI_CATCH(context, "vi_graph_launch")
}

int32_t vi_graph_destroy(vi_context* context, vi_graph* graph) {
    VI_NOT_RECORDED(context, "vi_graph_destroy");
    delete graph;
    return VI_OK;
}

} // extern "C"
