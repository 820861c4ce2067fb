// What the scheduler notes about where a sequence's time went.
#include "sched/trace.h"

#include <gtest/gtest.h>

#include <string>

#include "world.h"

namespace srt {
namespace {

TEST(TraceLogTest, KeepsTheLastOnesAndForgetsTheOldest) {
  TraceLog log(2);
  for (SeqId id = 1; id <= 3; ++id) log.push({.id = id, .num_steps = static_cast<int32_t>(id)});
  EXPECT_EQ(log.find(1), nullptr);
  EXPECT_EQ(log.find(2)->num_steps, 2);
  EXPECT_EQ(log.find(3)->num_steps, 3);
  log.push({.id = 3, .num_steps = 4});  // an id may come again
  log.push({.id = 5});
  EXPECT_EQ(log.find(3)->num_steps, 4);
}

TEST(TraceTest, NotesQueueChunksStepsAndEnd) {
  SchedulerConfig config = small_config();
  config.max_step_tokens = config.max_prefill_tokens = 8;
  World world(config);
  world.scheduler.tell_time(100);
  world.add(request(1, std::string(12, 'a'), 2));
  world.scheduler.tell_time(150);
  world.schedule();  // 8 tokens of the prompt
  world.commit();
  EXPECT_EQ(world.scheduler.trace(1)->admitted_us, 150);
  EXPECT_EQ(world.scheduler.trace(1)->first_token_us, -1);
  world.schedule();  // the other 4
  world.scheduler.tell_time(300);
  world.commit();
  world.schedule();
  world.scheduler.tell_time(400);
  world.commit();
  const std::optional<Trace> trace = world.scheduler.trace(1);
  ASSERT_TRUE(trace.has_value());
  EXPECT_EQ(trace->added_us, 100);
  EXPECT_EQ(trace->first_token_us, 300);
  EXPECT_EQ(trace->ended_us, 400);
  EXPECT_EQ(trace->num_prompt_tokens, 12);
  EXPECT_EQ(trace->num_output_tokens, 2);
  EXPECT_EQ(trace->num_chunks, 2);
  EXPECT_EQ(trace->num_extend_tokens, 12);
  EXPECT_EQ(trace->num_steps, 3);
  EXPECT_EQ(trace->sum_batch, 3);
  EXPECT_EQ(trace->finish, FinishReason::kLength);
  EXPECT_FALSE(world.scheduler.trace(2).has_value());
}

TEST(TraceTest, CountsTheTimeAfterARetraction) {
  SchedulerConfig config = small_config();
  config.num_pages = 21;  // two sequences of 16 tokens do not fit to their ends
  config.page_size = 1;
  config.enable_radix = false;
  config.init_new_token_ratio = config.min_new_token_ratio = 0.0;
  World world(config);
  world.add(request(1, "abcd", 12));
  world.add(request(2, "efgh", 12));
  int64_t now = 0;
  while (world.num_alive() > 0) {
    world.scheduler.tell_time(now += 10);
    ASSERT_TRUE(world.schedule());
    world.commit();
  }
  const Trace first = *world.scheduler.trace(1);
  const Trace second = *world.scheduler.trace(2);
  EXPECT_EQ(first.num_retractions + second.num_retractions, 1);
  const Trace& victim = first.num_retractions > 0 ? first : second;
  EXPECT_GT(victim.requeued_for_us, 0);
  EXPECT_EQ(victim.retracted_us, -1);
  EXPECT_GT(victim.num_extend_tokens, victim.num_prompt_tokens);
  EXPECT_EQ(victim.max_batch, 2);
}

TEST(TraceTest, AbortedWhileWaitingWasNeverAdmitted) {
  World world(small_config());
  world.scheduler.tell_time(5);
  world.add(request(1, "ab", 4));
  world.scheduler.tell_time(9);
  world.abort(1);
  const Trace trace = *world.scheduler.trace(1);
  EXPECT_EQ(trace.admitted_us, -1);
  EXPECT_EQ(trace.ended_us, 9);
  EXPECT_EQ(trace.finish, FinishReason::kAbort);
}

}  // namespace
}  // namespace srt
