// Who runs next, what is shared, who gives way: policies, the prefix cache, admission, retraction.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "world.h"

namespace srt {
namespace {

class AdmissionTest : public testing::Test {
 protected:
  World& start(const SchedulerConfig& config) {
    world_ = std::make_unique<World>(config);
    return *world_;
  }
  // Runs everybody one at a time; returns the order in which they were admitted.
  std::vector<SeqId> order_of_admission(World& world) {
    std::vector<SeqId> order;
    while (world.num_alive() > 0 && world.schedule()) {
      for (const SeqId id : world.plan.sample_seq_ids) order.push_back(id);
      world.commit();
    }
    return order;
  }
  static SchedulerConfig one_row(Policy policy) {
    SchedulerConfig config = small_config();
    config.max_running = 1;
    config.policy = policy;
    return config;
  }
  std::unique_ptr<World> world_;
};

TEST_F(AdmissionTest, FcfsKeepsArrival) {
  World& world = start(one_row(Policy::kFcfs));
  for (SeqId id = 1; id <= 4; ++id) world.add(request(id, "abc", 1));
  EXPECT_EQ(order_of_admission(world), (std::vector<SeqId>{1, 2, 3, 4}));
}

TEST_F(AdmissionTest, LpmPrefersTheLongestCachedPrefix) {
  World& world = start(one_row(Policy::kLpm));
  world.add(request(1, "abcdef", 1));
  world.run_to_end();
  world.add(request(2, "xyz", 1));
  world.add(request(3, "abz", 1));
  world.add(request(4, "abcdez", 1));
  EXPECT_EQ(order_of_admission(world), (std::vector<SeqId>{4, 3, 2}));
}

TEST_F(AdmissionTest, LpmIsFcfsWhenManyWait) {
  World& world = start(one_row(Policy::kLpm));
  world.add(request(1, "abcdef", 1));
  world.run_to_end();
  for (SeqId id = 2; id < 2 + WaitingQueue::kMaxSorted; ++id) world.add(request(id, "xyz", 1));
  world.add(request(999, "abcdef", 1));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.sample_seq_ids, std::vector<SeqId>{2});
}

TEST_F(AdmissionTest, DfsWeightRunsTheHeaviestSubtreeFirst) {
  SchedulerConfig config = small_config();
  config.policy = Policy::kDfsWeight;
  World& world = start(config);
  world.add(request(1, "aaaa", 1));
  world.add(request(2, "bbbb", 1));
  order_of_admission(world);
  world.add(request(3, "aaax", 1));
  world.add(request(4, "bbbx", 1));
  world.add(request(5, "bbby", 1));
  EXPECT_EQ(order_of_admission(world), (std::vector<SeqId>{4, 5, 3}));
}

TEST_F(AdmissionTest, RandomIsAPermutationFixedByTheSeed) {
  const auto run = [&](uint64_t seed) {
    SchedulerConfig config = one_row(Policy::kRandom);
    config.random_seed = seed;
    World& world = start(config);
    for (SeqId id = 0; id < 20; ++id) world.add(request(id, "abc", 1));
    return order_of_admission(world);
  };
  const std::vector<SeqId> first = run(1);
  EXPECT_EQ(first, run(1));
  EXPECT_NE(first, run(2));
  EXPECT_EQ(std::set<SeqId>(first.begin(), first.end()).size(), 20U);
}

TEST_F(AdmissionTest, PriorityComesBeforePolicy) {
  World& world = start(one_row(Policy::kFcfs));
  for (SeqId id = 1; id <= 3; ++id) {
    NewSequence seq = request(id, "abc", 1);
    seq.priority = static_cast<int32_t>(id) % 3;
    world.add(seq);
  }
  EXPECT_EQ(order_of_admission(world), (std::vector<SeqId>{2, 1, 3}));
}

TEST_F(AdmissionTest, AStepsOwnPrefixIsSharedWithinTheStep) {
  World& world = start(small_config());
  world.add(request(1, "abcdefgh", 1));
  world.add(request(2, "abcdefxy", 1));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.q_len(1), 8);
  EXPECT_EQ(world.q_len(2), 2);
}

TEST_F(AdmissionTest, AnUnfinishedPromptIsNotComputedTwice) {
  SchedulerConfig config = small_config();
  config.max_step_tokens = 10;
  World& world = start(config);
  world.add(request(1, std::string(25, 'a'), 1));
  world.add(request(2, std::string(25, 'a') + "b", 1));
  int32_t num_extended = 0;
  while (world.num_alive() > 0 && world.schedule()) {
    num_extended += world.plan.num_extend_tokens;
    world.commit();
  }
  EXPECT_EQ(num_extended, 25 + 1);
}

TEST_F(AdmissionTest, AtLeastOneTokenIsRecomputed) {
  SchedulerConfig config = small_config();
  config.page_size = 4;
  World& world = start(config);
  for (SeqId id = 1; id <= 2; ++id) world.add(request(id, "abcdefgh", 1));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.q_len(2), 4) << "whole pages are shared, the last one is computed again";
}

TEST_F(AdmissionTest, OutputIsCachedForTheNextTurn) {
  World& world = start(small_config());
  world.sampler = [](const Life&) { return 'z'; };
  world.add(request(1, "ab", 4));
  world.run_to_end();
  world.add(request(2, "abzzzzcd", 1));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_cached_tokens, 5) << "the last sampled token has no KV";
}

TEST_F(AdmissionTest, NamespacesShareNothing) {
  World& world = start(small_config());
  world.add(request(1, "abcd", 1));
  NewSequence other = request(2, "abcd", 1);
  other.ns = "adapter";
  world.add(other);
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_cached_tokens, 0);
}

TEST_F(AdmissionTest, WithoutRadixNothingIsCached) {
  SchedulerConfig config = small_config();
  config.enable_radix = false;
  World& world = start(config);
  for (SeqId id = 1; id <= 2; ++id) world.add(request(id, "abcd", 2));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_cached_tokens, 0);
  world.run_to_end();
  EXPECT_EQ(world.scheduler.stats().num_free_pages, 100);
}

TEST_F(AdmissionTest, HoldsBackWhatThePoolWillNotCarry) {
  SchedulerConfig config = small_config();
  config.num_pages = 31;
  config.init_new_token_ratio = 1.0;
  World& world = start(config);
  world.add(request(1, "abcde", 15));
  world.add(request(2, "fghij", 15));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_new_seqs, 1) << "5 + 15 + 5 + 15 tokens, 30 slots";
  world.run_to_end();
  EXPECT_EQ(world.scheduler.stats().num_retracted, 0);
}

TEST_F(AdmissionTest, TheRatioDecaysWithDecodesAndReturnsWhenIdle) {
  SchedulerConfig config = small_config();
  config.init_new_token_ratio = 0.5;
  config.min_new_token_ratio = 0.3;
  config.new_token_ratio_decay = 0.15;
  World& world = start(config);
  world.add(request(1, "ab", 4));
  std::vector<double> ratios;
  while (world.num_alive() > 0 && world.schedule()) {
    ratios.push_back(world.scheduler.stats().new_token_ratio);
    world.commit();
  }
  EXPECT_EQ(ratios, (std::vector<double>{0.5, 0.35, 0.3, 0.3}));
  EXPECT_EQ(world.scheduler.stats().new_token_ratio, 0.5);
}

TEST_F(AdmissionTest, EvictsTheCacheBeforeRetracting) {
  SchedulerConfig config = small_config();
  config.num_pages = 21;
  World& world = start(config);
  world.add(request(1, std::string(18, 'a'), 1));
  world.run_to_end();
  world.add(request(2, std::string(15, 'b'), 5));
  world.run_to_end();
  EXPECT_EQ(world.life(2).emitted.size(), 5U);
  EXPECT_GT(world.scheduler.stats().num_evicted_pages, 0);
  EXPECT_EQ(world.scheduler.stats().num_retracted, 0);
}

SchedulerConfig bold_config() {
  SchedulerConfig config = small_config();
  config.num_pages = 41;
  config.init_new_token_ratio = 0.0;
  config.min_new_token_ratio = 0.0;
  config.clip_max_new_tokens = 1;
  config.max_step_tokens = 64;
  config.max_prefill_tokens = 64;
  return config;
}

TEST_F(AdmissionTest, RetractsTheFewestOutputsAndRepeatsNoToken) {
  World& world = start(bold_config());
  TokenId next = 0;
  world.sampler = [&](const Life&) { return next++ % 100; };
  world.add(request(1, "abcde", 30));
  ASSERT_TRUE(world.schedule());
  world.commit();
  world.add(request(2, "fghijk", 29));
  while (world.scheduler.stats().num_retracted == 0) {
    ASSERT_TRUE(world.schedule());
    world.commit();
  }
  EXPECT_EQ(world.scheduler.row_of(2), -1) << "it has one output token less";
  EXPECT_GE(world.scheduler.row_of(1), 0);
  EXPECT_GT(world.scheduler.stats().new_token_ratio, 0.0);
  world.run_to_end();
  EXPECT_EQ(world.life(1).emitted.size(), 30U);
  EXPECT_EQ(world.life(2).emitted.size(), 29U);
  world.check_drained();
}

TEST_F(AdmissionTest, AmongEqualsTheLongestPromptGivesWay) {
  World& world = start(bold_config());
  world.add(request(1, "abcdefgh", 30));
  world.add(request(2, "zyxw", 30));
  while (world.scheduler.stats().num_retracted == 0) {
    ASSERT_TRUE(world.schedule());
    world.commit();
  }
  EXPECT_EQ(world.scheduler.row_of(1), -1);
}

TEST_F(AdmissionTest, AloneASequenceFillsThePoolAndNoMore) {
  SchedulerConfig config = small_config();
  config.num_pages = 21;
  World& world = start(config);
  world.add(request(1, "abcde", 50));
  world.run_to_end();
  EXPECT_EQ(world.life(1).finish, FinishReason::kLength);
  EXPECT_EQ(world.life(1).tokens.size(), 21U) << "20 slots, and a last token that needs none";
}

TEST_F(AdmissionTest, TellsCachedTokensOnce) {
  World& world = start(small_config());
  world.add(request(1, "abcdef", 2));
  world.run_to_end();
  world.add(request(2, "abcdxy", 2));
  world.run_to_end();
  EXPECT_EQ(world.life(1).cached_tokens, 0);
  EXPECT_EQ(world.life(2).cached_tokens, 4);
  EXPECT_EQ(world.scheduler.stats().num_prompt_tokens, 12);
  EXPECT_EQ(world.scheduler.stats().num_prompt_cached_tokens, 4);
}

TEST_F(AdmissionTest, PageTableUpdatesOfOneStepAreBounded) {
  SchedulerConfig config = small_config();
  config.max_seq_len = 40'000;
  config.num_pages = 40'001;
  config.max_step_tokens = 40'000;
  config.max_prefill_tokens = 40'000;
  config.clip_max_new_tokens = 1;
  config.self_check = false;
  World& world = start(config);
  const std::string prefix(30'000, 'a');
  world.add(request(1, prefix, 0));
  world.run_to_end();
  for (SeqId id = 2; id <= 5; ++id) world.add(request(id, prefix + "bc", 1));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_new_seqs, 2) << "30,000 entries each, 65,536 a step";
  world.run_to_end();
}

}  // namespace
}  // namespace srt
