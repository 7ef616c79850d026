"""What a network costs on a target: profiles, measurements and the analytic model."""
