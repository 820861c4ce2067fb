// The rules of the scheduler one by one: phases, chunks, finishing, sampling records, logit rows.
#include "sched/scheduler.h"

#include <gtest/gtest.h>

#include <bit>
#include <string>

#include "core/error.h"
#include "world.h"

namespace srt {
namespace {

TokenId constant_token(const Life&) { return 'z'; }

class SchedulerTest : public testing::Test {
 protected:
  World& start(const SchedulerConfig& config = small_config()) {
    world_ = std::make_unique<World>(config);
    world_->sampler = constant_token;
    return *world_;
  }
  std::unique_ptr<World> world_;
};

TEST_F(SchedulerTest, NothingToRunIsNoPlan) { EXPECT_FALSE(start().schedule()); }

TEST_F(SchedulerTest, AShortPromptExtendsOnceThenDecodes) {
  World& world = start();
  world.add(request(1, "abc", 3));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.q_len(1), 3);
  EXPECT_FALSE(world.plan.is_decode_only());
  world.commit();
  ASSERT_TRUE(world.schedule());
  EXPECT_TRUE(world.plan.is_decode_only());
  world.run_to_end();
  EXPECT_EQ(world.life(1).emitted.size(), 3U);
  EXPECT_EQ(world.life(1).finish, FinishReason::kLength);
  world.check_drained();
}

TEST_F(SchedulerTest, ALongPromptIsChunkedToTheStepBudget) {
  SchedulerConfig config = small_config();
  config.max_step_tokens = 10;
  World& world = start(config);
  world.add(request(1, std::string(23, 'a'), 1));
  for (const int32_t expected : {10, 10, 3}) {
    ASSERT_TRUE(world.schedule());
    EXPECT_EQ(world.q_len(1), expected);
    EXPECT_EQ(world.plan.num_samples, expected == 3 ? 1 : 0);
    world.commit();
  }
  EXPECT_FALSE(world.is_alive(1));
}

TEST_F(SchedulerTest, AChunkTakesWhatDecodesLeave) {
  SchedulerConfig config = small_config();
  config.max_step_tokens = 8;
  World& world = start(config);
  world.add(request(1, "ab", 20));
  ASSERT_TRUE(world.schedule());
  world.commit();
  world.add(request(2, std::string(20, 'c'), 1));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_decode, 1);
  EXPECT_EQ(world.q_len(2), 7);
}

TEST_F(SchedulerTest, MaxPrefillTokensBoundsPromptsOnly) {
  SchedulerConfig config = small_config();
  config.max_prefill_tokens = 5;
  World& world = start(config);
  world.add(request(1, "abcdefgh", 1));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.q_len(1), 5);
}

TEST_F(SchedulerTest, WithoutMixingExtendsComeAloneAndFirst) {
  SchedulerConfig config = small_config();
  config.enable_mixed = false;
  World& world = start(config);
  world.add(request(1, "ab", 9));
  ASSERT_TRUE(world.schedule());
  world.commit();
  world.add(request(2, "cd", 9));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_decode, 0);
  EXPECT_EQ(world.q_len(2), 2);
  world.commit();
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_decode, 2);
}

TEST_F(SchedulerTest, AStopTokenEndsAndIsReported) {
  World& world = start();
  NewSequence seq = request(1, "ab", 9);
  seq.sampling.stop_token_ids = {'z'};
  world.add(seq);
  world.run_to_end();
  EXPECT_EQ(world.life(1).finish, FinishReason::kStop);
  EXPECT_EQ(world.life(1).emitted, std::vector<TokenId>{'z'});
}

TEST_F(SchedulerTest, StopTokensAreMaskedAndIgnoredBelowMinNewTokens) {
  World& world = start();
  NewSequence seq = request(1, "ab", 9);
  seq.sampling.stop_token_ids = {'y', 'z'};
  seq.min_new_tokens = 2;
  world.add(seq);
  for (const bool masked : {true, true, false}) {
    ASSERT_TRUE(world.schedule());
    const StepReader step = world.step();
    const int32_t* record = step.sampling(0);
    EXPECT_EQ((record[msg::kSampleFlags] & msg::kMaskStops) != 0, masked);
    EXPECT_EQ(record[msg::kNumStopIds], masked ? 2 : 0);
    const int32_t* second = step.record(msg::kOffExtra, record[msg::kExtraOffset] + 1, 1);
    EXPECT_TRUE(!masked || *second == 'z');
    world.commit();
  }
  EXPECT_EQ(world.life(1).finish, FinishReason::kStop);
  EXPECT_EQ(world.life(1).emitted.size(), 3U);
}

TEST_F(SchedulerTest, TheContextLimitEndsASequence) {
  World& world = start();
  world.add(request(1, std::string(60, 'a'), 100));
  world.run_to_end();
  EXPECT_EQ(world.life(1).tokens.size(), 64U);
  EXPECT_EQ(world.life(1).finish, FinishReason::kLength);
}

TEST_F(SchedulerTest, APromptWithoutOutputTellsTheStepItEndsWith) {
  SchedulerConfig config = small_config();
  config.max_step_tokens = 10;
  World& world = start(config);
  world.add(request(1, "ab", 9));
  ASSERT_TRUE(world.schedule());
  EXPECT_TRUE(world.plan.prompt_end_seq_ids.empty());
  world.commit();
  world.add(request(2, std::string(11, 'c'), 0));
  ASSERT_TRUE(world.schedule());
  EXPECT_TRUE(world.plan.prompt_end_seq_ids.empty());
  world.commit();
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.prompt_end_seq_ids, std::vector<SeqId>{2});
  EXPECT_EQ(world.plan.prompt_end_seqs, std::vector<int32_t>{1});
  world.run_to_end();
  world.check_drained();
}

TEST_F(SchedulerTest, APromptWithoutOutputMayFillTheContext) {
  World& world = start();
  world.add(request(1, std::string(64, 'a'), 0));
  world.run_to_end();
  EXPECT_EQ(world.life(1).finish, FinishReason::kLength);
  EXPECT_THROW(world.scheduler.add(request(2, std::string(65, 'a'), 0)), InvalidArgument);
}

TEST_F(SchedulerTest, WholePromptsAreNeverChunked) {
  SchedulerConfig config = small_config();
  config.whole_prompts = true;
  EXPECT_THROW(Scheduler{config}, InvalidArgument);  // a cached prefix would not know its suffix
  config.enable_radix = false;
  config.max_step_tokens = config.max_prefill_tokens = 20;
  World& world = start(config);
  EXPECT_THROW(world.scheduler.add(request(9, std::string(21, 'a'), 0)), InvalidArgument);
  world.add(request(1, std::string(15, 'a'), 0));
  world.add(request(2, std::string(20, 'b'), 0));
  world.add(request(3, "ccc", 0));
  for (const std::vector<int32_t>& lens : {std::vector{15, 0, 0}, {0, 20, 0}, {0, 0, 3}}) {
    ASSERT_TRUE(world.schedule());
    EXPECT_EQ((std::vector{world.q_len(1), world.q_len(2), world.q_len(3)}), lens);
    world.commit();
  }
  world.check_drained();
}

TEST_F(SchedulerTest, NoNewTokensMeansPrefillOnly) {
  World& world = start();
  world.add(request(1, "abcd", 0));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_samples, 0);
  EXPECT_FALSE(world.schedule());
  world.commit();
  EXPECT_EQ(world.life(1).finish, FinishReason::kLength);
  EXPECT_TRUE(world.life(1).emitted.empty());
  world.add(request(2, "abcd", 1));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_cached_tokens, 3) << "it warmed the cache";
}

TEST_F(SchedulerTest, SamplingParametersReachTheRecord) {
  World& world = start();
  NewSequence seq = request(1, "ab", 2);
  seq.sampling.temperature = 0.5F;
  seq.sampling.top_p = 0.9F;
  seq.sampling.top_k = 40;
  seq.sampling.min_p = 0.1F;
  seq.sampling.frequency_penalty = 0.2F;
  seq.sampling.presence_penalty = 0.3F;
  seq.sampling.repetition_penalty = 1.1F;
  seq.sampling.seed = 0x1234567890ABCDEFULL;
  seq.sampling.logit_bias = {{7, -2.5F}};
  seq.sampling.return_logprob = true;
  world.add(seq);
  ASSERT_TRUE(world.schedule());
  const StepReader step = world.step();
  const int32_t* record = step.sampling(0);
  const auto real = [&](msg::SamplingRecord word) { return std::bit_cast<float>(record[word]); };
  EXPECT_EQ(record[msg::kSampleFlags],
            msg::kFiltered | msg::kPenalties | msg::kBiased | msg::kWantsLogprobs);
  EXPECT_EQ(real(msg::kTemperature), 0.5F);
  EXPECT_EQ(real(msg::kTopP), 0.9F);
  EXPECT_EQ(record[msg::kTopK], 40);
  EXPECT_EQ(real(msg::kMinP), 0.1F);
  EXPECT_EQ(real(msg::kFrequency), 0.2F);
  EXPECT_EQ(real(msg::kPresence), 0.3F);
  EXPECT_EQ(real(msg::kRepetition), 1.1F);
  EXPECT_EQ(static_cast<uint32_t>(record[msg::kSeedLo]), 0x90ABCDEFU);
  EXPECT_EQ(static_cast<uint32_t>(record[msg::kSeedHi]), 0x12345678U);
  EXPECT_EQ(record[msg::kNumBiases], 1);
  const int32_t* bias = step.record(msg::kOffExtra, record[msg::kExtraOffset], 1);
  EXPECT_EQ(bias[0], 7);
  EXPECT_EQ(std::bit_cast<float>(bias[1]), -2.5F);
  EXPECT_FALSE(world.plan.all_greedy);
  EXPECT_EQ(world.plan.any_sampling_flags, record[msg::kSampleFlags]);
}

TEST_F(SchedulerTest, SectionsStartAligned) {
  World& world = start();
  NewSequence seq = request(1, "abc", 2);
  seq.sampling.logit_bias = {{7, 1.0F}};
  world.add(seq);
  ASSERT_TRUE(world.schedule());
  const StepReader step = world.step();
  for (int word = msg::kOffSeqs; word <= msg::kOffExtra; ++word) {
    EXPECT_EQ(step.words[static_cast<size_t>(word)] % msg::kAlignWords, 0) << word;
  }
  EXPECT_EQ(step.words[msg::kTotalWords] % msg::kAlignWords, 0);
}

TEST_F(SchedulerTest, PromptLogprobsRecomputeTheTokensTheyNeed) {
  World& world = start();
  world.add(request(1, "abcdef", 1));
  world.run_to_end();
  NewSequence seq = request(2, "abcdef", 1);
  seq.sampling.logprob_start = 3;
  world.add(seq);
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_cached_tokens, 2) << "position 3 is predicted by token 2";
  EXPECT_EQ(world.life(2).scored, (std::set<int32_t>{3, 4, 5}));
}

TEST_F(SchedulerTest, PromptLogprobsFromTheStartSkipPositionZero) {
  World& world = start();
  NewSequence seq = request(1, "abc", 0);
  seq.sampling.logprob_start = 0;
  world.add(seq);
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.life(1).scored, (std::set<int32_t>{1, 2}));
}

TEST_F(SchedulerTest, ALogitLimitCutsChunks) {
  SchedulerConfig config = small_config();
  config.max_step_logits = 9;
  World& world = start(config);
  NewSequence seq = request(1, std::string(20, 'a'), 1);
  seq.sampling.logprob_start = 0;
  world.add(seq);
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.q_len(1), 8);
  world.run_to_end();
  EXPECT_EQ(world.life(1).scored.size(), 19U);
}

TEST_F(SchedulerTest, AbortEndsWaitingAndRunningSequencesAtOnce) {
  SchedulerConfig config = small_config();
  config.max_running = 1;
  World& world = start(config);
  world.add(request(1, "ab", 9));
  world.add(request(2, "cd", 9));
  ASSERT_TRUE(world.schedule());
  world.abort(2);
  world.commit();
  world.abort(1);
  world.abort(1);
  EXPECT_EQ(world.life(1).finish, FinishReason::kAbort);
  EXPECT_EQ(world.life(2).finish, FinishReason::kAbort);
  EXPECT_FALSE(world.schedule());
  world.check_drained();
}

TEST_F(SchedulerTest, FewWaitingPromptTokensRunInPiecesBesideDecodes) {
  SchedulerConfig config = small_config();
  config.max_step_tokens = 24;
  config.max_prefill_tokens = 16;
  config.max_mixed_tokens = 4;
  World& world = start(config);
  world.add(request(1, "abcdef", 9));
  ASSERT_TRUE(world.schedule());  // nobody decodes: no bound
  EXPECT_EQ(world.plan.num_extend_tokens, 6);
  world.commit();
  world.add(request(2, "bbbbbb", 9));
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_decode, 1);
  EXPECT_EQ(world.plan.num_extend_tokens, 4);
  world.commit();
  world.add(request(3, "cccccccccc", 9));  // with what is left of the second: a backlog
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.num_extend_tokens, 12);
  world.commit();
}

TEST_F(SchedulerTest, RefusesWhatCanNeverRunAndNamesBothNumbers) {
  SchedulerConfig config = small_config();
  config.num_pages = 11;
  World& world = start(config);
  const auto why = [&](const NewSequence& seq) {
    try {
      world.scheduler.add(seq);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const std::string too_long = why(request(1, std::string(64, 'a'), 1));
  EXPECT_NE(too_long.find("64 tokens"), std::string::npos) << too_long;
  EXPECT_NE(too_long.find("holds 64"), std::string::npos) << too_long;
  const std::string too_big = why(request(1, std::string(10, 'a'), 1));
  EXPECT_NE(too_big.find("11 KV slots"), std::string::npos) << too_big;
  EXPECT_NE(too_big.find("holds 10"), std::string::npos) << too_big;
  EXPECT_EQ(why(request(1, std::string(10, 'a'), 0)), "") << "nothing is written behind it";
  EXPECT_NE(why(request(1, "a", 1)).find("already in use"), std::string::npos);
  NewSequence biased = request(2, "a", 1);
  biased.sampling.logit_bias.resize(600);
  EXPECT_NE(why(biased).find("1200 words"), std::string::npos);
}

TEST_F(SchedulerTest, FlushWaitsForEverybody) {
  World& world = start();
  world.add(request(1, "abc", 1));
  EXPECT_FALSE(world.scheduler.flush());
  ASSERT_TRUE(world.schedule());
  world.abort(1);
  EXPECT_TRUE(world.scheduler.flush()) << "the step in flight is nobody's";
  world.commit();
  EXPECT_EQ(world.scheduler.stats().num_cached_pages, 0);
}

TEST_F(SchedulerTest, DecodesThatShareALockedPrefixAreGrouped) {
  SchedulerConfig config = small_config();
  config.shared_prefix_pages = 4;
  World& world = start(config);
  world.add(request(1, "abcdefX", 5));
  world.add(request(2, "abcdefY", 5));
  world.add(request(3, "uvwxyz", 5));
  world.add(request(4, "abQ", 5));
  ASSERT_TRUE(world.schedule());
  world.commit();
  ASSERT_TRUE(world.schedule());
  EXPECT_EQ(world.plan.prefix_groups, (std::vector<int32_t>{0, 0, -1, -1}));
  EXPECT_EQ(world.plan.prefix_pages, (std::vector<int32_t>{6, 6, 0, 0}));
}

}  // namespace
}  // namespace srt
