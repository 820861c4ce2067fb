// Drafts: tokens that probably follow are run with the newest, and count where they were right.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/step_message.h"
#include "world.h"

namespace srt {
namespace {

std::vector<TokenId> letters(std::string_view text) { return {text.begin(), text.end()}; }

class DraftTest : public testing::Test {
 protected:
  // A world whose device always goes on with `text`.
  World& start(std::string text, const SchedulerConfig& config = small_config()) {
    world_ = std::make_unique<World>(config);
    world_->sampler = [text](const Life& life) {
      return text.at(life.tokens.size() - life.num_prompt);
    };
    return *world_;
  }
  // Runs the prompt, so that its first token is known.
  void add(std::string_view prompt, int32_t max_new_tokens) {
    NewSequence seq = request(1, prompt, max_new_tokens);
    seq.sync = true;
    world_->add(seq);
    step();
  }
  void step() {
    ASSERT_TRUE(world_->schedule());
    world_->commit();
  }
  std::string said() {
    const std::vector<TokenId>& tokens = world_->life(1).emitted;
    return {tokens.begin(), tokens.end()};
  }
  std::unique_ptr<World> world_;
};

TEST_F(DraftTest, RightDraftsComeInOneStep) {
  World& world = start("wxyzab");
  add("abc", 6);
  world.draft(1, letters("xyz"));
  step();
  EXPECT_EQ(said(), "wxyza");
  EXPECT_EQ(world.plan.num_decode, 4);
  EXPECT_EQ(world.plan.num_drafts, 3);
  EXPECT_EQ(world.scheduler.stats().num_right_drafts, 3);
  step();
  EXPECT_EQ(world.life(1).finish, FinishReason::kLength);
  world.check_drained();
}

TEST_F(DraftTest, BehindAWrongDraftNothingCounts) {
  World& world = start("wxoza");
  add("abc", 5);
  world.draft(1, letters("xyz"));
  step();
  EXPECT_EQ(said(), "wxo") << "the token that the device chose instead counts";
  EXPECT_EQ(world.scheduler.stats().num_right_drafts, 1);
  step();
  EXPECT_EQ(world.step().tokens[0].position, 5) << "it goes on from there";
  EXPECT_EQ(world.plan.num_drafts, 0) << "drafts are for one step";
  EXPECT_EQ(said(), "wxoz");
}

TEST_F(DraftTest, NoRowIsRunBehindTheLastToken) {
  World& world = start("wxyz");
  add("abc", 3);
  world.draft(1, letters("xyzxyz"));
  step();
  EXPECT_EQ(world.plan.num_decode, 2);
  EXPECT_EQ(world.life(1).finish, FinishReason::kLength);
}

TEST_F(DraftTest, AStopIdEndsAmongRightDrafts) {
  World& world = start("wxyzab");
  NewSequence seq = request(1, "abc", 6);
  seq.sync = true;
  seq.sampling.stop_token_ids = {'y'};
  world.add(seq);
  step();
  world.draft(1, letters("xyz"));
  step();
  EXPECT_EQ(said(), "wxy");
  EXPECT_EQ(world.life(1).finish, FinishReason::kStop);
  world.check_drained();
}

TEST_F(DraftTest, KvOfAWrongDraftIsNeverCached) {
  SchedulerConfig config = small_config();
  config.page_size = 2;
  World& world = start("wozz", config);
  add("abc", 3);
  world.draft(1, letters("x"));
  step();  // positions 3 and 4 are w and x; the page of "wo" would be whole
  world.abort(1);
  world.add(request(2, "abcwop", 1));
  world.sampler = [](const Life&) { return 'z'; };
  step();  // World fails if it reads the KV of "abcwx"
  EXPECT_EQ(world.life(2).cached_tokens, 4);
}

TEST_F(DraftTest, ARightDraftsKvIsCached) {
  SchedulerConfig config = small_config();
  config.page_size = 2;
  World& world = start("wxyz", config);
  add("abc", 4);
  world.draft(1, letters("xy"));
  step();
  world.add(request(2, "abcwxyzp", 1));
  world.sampler = [](const Life&) { return 'z'; };
  step();
  EXPECT_EQ(world.life(2).cached_tokens, 6) << "the KV of z was never computed";
}

TEST_F(DraftTest, DraftsLeaveRowsToWhoWaits) {
  SchedulerConfig config = small_config();
  config.max_running = 4;
  World& world = start("wxyzab", config);
  add("abc", 6);
  world.add(request(2, "de", 2));
  world.add(request(3, "fg", 2));
  world.draft(1, letters("xyz"));
  step();
  EXPECT_EQ(world.plan.num_drafts, 1);
  EXPECT_EQ(world.plan.num_new_seqs, 2);
}

TEST_F(DraftTest, DraftsAreNoReasonToRetract) {
  SchedulerConfig config = small_config();
  config.num_pages = 8;  // 7 to hand out
  config.enable_radix = false;
  World& world = start("wxyzab", config);
  add("abc", 5);
  world.draft(1, letters("xyzab"));
  step();
  EXPECT_EQ(world.plan.num_drafts, 3) << "positions 3 to 6 fill the pool";
  EXPECT_EQ(world.scheduler.stats().num_retracted, 0);
  EXPECT_EQ(world.life(1).finish, FinishReason::kLength);
}

TEST_F(DraftTest, ADraftThatCannotBeIsRefused) {
  World& world = start("wxyz");
  NewSequence free_one = request(2, "de", 3);
  world.add(free_one);
  EXPECT_THROW(world.draft(2, {1}), InvalidArgument);
  world.abort(2);
  add("abc", 3);
  EXPECT_THROW(world.draft(1, {-1}), InvalidArgument);
  EXPECT_THROW(world.draft(1, std::vector<TokenId>(msg::kMaxDrafts + 1, 1)), InvalidArgument);
  ASSERT_TRUE(world.schedule());
  EXPECT_THROW(world.draft(1, {1}), InvalidArgument);
  world.commit();
  world.abort(1);
  EXPECT_NO_THROW(world.draft(1, {1}));
}

}  // namespace
}  // namespace srt
