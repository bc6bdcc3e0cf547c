"""The improvement of the policy: rollouts, critic, PPO."""
