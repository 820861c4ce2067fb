// Two steps in flight: tokens the host has not seen, rows that turn out wasted, pages reused.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "core/error.h"
#include "world.h"

namespace srt {
namespace {

class OverlapTest : public testing::Test {
 protected:
  World& start(const SchedulerConfig& config = small_config()) {
    world_ = std::make_unique<World>(config);
    return *world_;
  }
  // Keeps two steps in flight until everybody is done.
  void overlap_to_end(World& world) {
    while (world.num_alive() > 0 || world.num_in_flight() > 0) {
      const bool planned = world.num_in_flight() < Scheduler::kMaxInFlight && world.schedule();
      ASSERT_TRUE(planned || world.num_in_flight() > 0);
      if (!planned) world.commit();
    }
  }
  std::unique_ptr<World> world_;
};

TEST_F(OverlapTest, TheNextInputIsTakenFromTheDevice) {
  World& world = start();
  world.add(request(1, "abc", 5));
  ASSERT_TRUE(world.schedule());
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.step().tokens[0].id, -1);
  EXPECT_EQ(world.step().tokens[0].position, 3);
  world.commit();
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.step().tokens[0].id, -1);
}

TEST_F(OverlapTest, AChunkNeedsNoCommit) {
  SchedulerConfig config = small_config();
  config.max_step_tokens = 4;
  config.max_running = 4;
  World& world = start(config);
  NewSequence seq = request(1, "abcdefgh", 2);
  seq.sync = true;
  world.add(seq);
  ASSERT_TRUE(world.schedule());
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.q_len(1), 4);
}

TEST_F(OverlapTest, ThirdStepIsRefused) {
  World& world = start();
  world.add(request(1, "abc", 9));
  ASSERT_TRUE(world.schedule());
  ASSERT_TRUE(world.schedule());
  EXPECT_THROW(world.schedule(), InvalidArgument);
}

TEST_F(OverlapTest, CommitsComeInOrderAndComplete) {
  World& world = start();
  world.add(request(1, "abc", 9));
  ASSERT_TRUE(world.schedule());
  const StepId first = world.plan.step;
  ASSERT_TRUE(world.schedule());
  const std::vector<TokenId> one{5};
  EXPECT_THROW(world.scheduler.commit(world.plan.step, one), InvalidArgument);
  EXPECT_THROW(world.scheduler.commit(first, {}), InvalidArgument);
}

TEST_F(OverlapTest, ALengthFinishWastesNoRow) {
  World& world = start();
  world.add(request(1, "abc", 2));
  ASSERT_TRUE(world.schedule());
  ASSERT_TRUE(world.schedule());
  world.commit();
  EXPECT_FALSE(world.schedule()) << "its second and last token is in flight";
  world.commit();
  EXPECT_EQ(world.life(1).finish, FinishReason::kLength);
}

TEST_F(OverlapTest, AStopWastesOneRowAndReportsNothingMore) {
  World& world = start();
  world.sampler = [](const Life&) { return 'z'; };
  NewSequence seq = request(1, "abc", 9);
  seq.sampling.stop_token_ids = {'z'};
  world.add(seq);
  ASSERT_TRUE(world.schedule());
  ASSERT_TRUE(world.schedule());
  world.commit();
  EXPECT_EQ(world.life(1).finish, FinishReason::kStop);
  world.commit();  // World fails on an event that nobody is owed
  world.check_drained();
}

TEST_F(OverlapTest, PagesOfAFinishedSequenceAreReusedWhileItsWastedStepFlies) {
  SchedulerConfig config = small_config();
  config.num_pages = 9;
  config.max_running = 1;
  config.enable_radix = false;
  World& world = start(config);
  world.sampler = [](const Life&) { return 'z'; };
  NewSequence stopping = request(1, "abcd", 4);
  stopping.sampling.stop_token_ids = {'z'};
  world.add(stopping);
  world.add(request(2, "efghijk", 1));
  ASSERT_TRUE(world.schedule());
  ASSERT_TRUE(world.schedule());
  world.commit();
  ASSERT_TRUE(world.schedule()) << "row and pages of 1 serve 2";
  EXPECT_EQ(world.q_len(2), 7);
  world.commit();
  world.commit();
  EXPECT_EQ(world.life(2).finish, FinishReason::kLength);
}

TEST_F(OverlapTest, AnIdMayReturnWhileItsOldStepFlies) {
  World& world = start();
  world.add(request(1, "abc", 9));
  ASSERT_TRUE(world.schedule());
  world.abort(1);
  world.add(request(1, "xyz", 2));
  ASSERT_TRUE(world.schedule());
  overlap_to_end(world);
  EXPECT_EQ(world.life(1).emitted.size(), 2U) << "the old step's token is nobody's";
}

TEST_F(OverlapTest, SyncSequencesWaitForTheirToken) {
  World& world = start();
  NewSequence grammar = request(1, "abc", 3);
  grammar.sync = true;
  world.add(grammar);
  world.add(request(2, "xyz", 9));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_masked, 1);
  EXPECT_EQ(world.step().sampling(0)[msg::kBitmaskRow], 0);
  EXPECT_EQ(world.step().sampling(1)[msg::kBitmaskRow], -1);
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.q_len(1), 0);
  EXPECT_EQ(world.q_len(2), 1);
  world.commit();
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.q_len(1), 1);
}

TEST_F(OverlapTest, ARetractedSequenceKeepsTheTokenInFlight) {
  SchedulerConfig config = small_config();
  config.num_pages = 41;
  config.init_new_token_ratio = 0.0;
  config.min_new_token_ratio = 0.0;
  config.clip_max_new_tokens = 1;
  World& world = start(config);
  world.add(request(1, "abcdefgh", 30));
  world.add(request(2, "zyxw", 30));
  overlap_to_end(world);
  EXPECT_GT(world.scheduler.stats().num_retracted, 0);
  EXPECT_EQ(world.life(1).emitted.size(), 30U);
  EXPECT_EQ(world.life(2).emitted.size(), 30U);
  world.check_drained();
}

TEST_F(OverlapTest, TheSameCallsGiveTheSamePlans) {
  const auto run = [] {
    World world(small_config());
    std::vector<int32_t> words;
    for (SeqId id = 1; id <= 6; ++id) world.add(request(id, "abcdefgh", 4 + int32_t(id)));
    while (world.num_alive() > 0) {
      if (world.num_in_flight() < 2 && world.schedule()) {
        const auto step = world.step().words;
        words.insert(words.end(), step.begin(), step.begin() + step[msg::kTotalWords]);
      } else {
        world.commit();
      }
    }
    return words;
  };
  EXPECT_EQ(run(), run());
}

}  // namespace
}  // namespace srt
